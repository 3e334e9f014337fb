"""Small real Avalanche streams of random data."""

import torch
from avalanche.benchmarks import benchmark_from_datasets, tensors_benchmark, with_task_labels
from avalanche.benchmarks.scenarios.supervised import with_classes_timeline
from avalanche.benchmarks.utils import (
    AvalancheDataset,
    ConstantSequence,
    TaskLabels,
    concat_datasets,
)
from torch.utils.data import TensorDataset


def tensors(experience):
    """Inputs, targets and task labels of all samples."""
    columns = zip(*experience.dataset, strict=True)
    return tuple(torch.stack([torch.as_tensor(v) for v in column]) for column in columns)


def task_stream(n_tasks=3, n_samples=20, n_in=6, n_classes=2, task_labels=None, offset=False):
    """One experience per task label, classes from zero unless ``offset``."""
    labels = list(range(n_tasks)) if task_labels is None else task_labels
    generator = torch.Generator().manual_seed(1)
    data = []
    for index in range(len(labels)):
        x = torch.randn(n_samples, n_in, generator=generator)
        y = torch.arange(n_samples) % n_classes + (n_classes * index if offset else 0)
        x += y[:, None] * torch.linspace(-1, 1, n_in)
        data.append((x, y))
    return tensors_benchmark(train_tensors=data, test_tensors=data, task_labels=labels)


def two_tasks_in_one(first, second):
    """One experience with the samples of two."""
    both = concat_datasets([first.dataset, second.dataset])
    benchmark = benchmark_from_datasets(train=[both])
    return with_classes_timeline(with_task_labels(benchmark)).train_stream[0]


def regression_stream(data):
    """Experiences of real inputs and targets, [(x, y), ...], without task labels."""
    return benchmark_from_datasets(
        train=[AvalancheDataset(TensorDataset(x, y)) for x, y in data],
        test=[AvalancheDataset(TensorDataset(x, y)) for x, y in data],
    )


def adapt(model, experience, training=True):
    model.train(training)
    for module in model.modules():
        if hasattr(module, "adaptation"):
            module.adaptation(experience)
    return model


def labelled_benchmark(data):
    """Experiences of [(x, y), ...] with the task labels 0, 1, ..., and nothing about classes."""
    datasets = [
        AvalancheDataset(
            [TensorDataset(x, y)], data_attributes=[TaskLabels(ConstantSequence(label, len(x)))]
        )
        for label, (x, y) in enumerate(data)
    ]
    return with_task_labels(benchmark_from_datasets(train=datasets))
