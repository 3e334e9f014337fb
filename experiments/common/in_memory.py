"""Benchmarks held in memory, with a part of the training data held out if wanted."""

from __future__ import annotations

import torch
from avalanche.benchmarks import (
    CLExperience,
    CLScenario,
    benchmark_from_datasets,
    with_task_labels,
)
from avalanche.benchmarks.utils import (
    AvalancheDataset,
    ConstantSequence,
    DataAttribute,
    TaskLabels,
)
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from avalanche_hnet import InMemoryPlugin

HELD_OUT = 0.1


def in_memory(benchmark: CLScenario, *, validate: bool, new_classes: int = 0) -> CLScenario:
    """The same experiences with all (deterministic) transforms applied once.

    Args:
        benchmark: with one task label per experience.
        validate: hold a tenth of the training data out, the same in every run, and let it be the
            test stream.
        new_classes: experience k has this times k added to its class labels.
    """
    train: list[AvalancheDataset] = []
    test: list[AvalancheDataset] = []
    pairs = list(zip(benchmark.train_stream, benchmark.test_stream, strict=True))
    progress = tqdm(pairs, desc="Reading", delay=3, disable=None, leave=False)
    for index, (seen, unseen) in enumerate(progress):
        parts = _held_out(*tensors_of(seen)) if validate else (tensors_of(seen), tensors_of(unseen))
        for stream, (x, y) in zip((train, test), parts, strict=True):
            stream.append(_dataset(x, y + new_classes * index, seen.task_label))
    stored = with_task_labels(benchmark_from_datasets(train=train, test=test))
    for experience in (*stored.train_stream, *stored.test_stream):
        experience.classes_in_this_experience = sorted(experience.dataset.targets.uniques)
    return stored


def memory_plugins(wanted: bool) -> list[InMemoryPlugin]:
    """What makes a strategy read its data once, if that is wanted."""
    return [InMemoryPlugin()] if wanted else []


def tensors_of(experience: CLExperience) -> tuple[Tensor, Tensor]:
    """All inputs and targets, with their evaluation transforms."""
    dataset = experience.dataset.eval()
    loader = DataLoader(dataset, batch_size=500, collate_fn=dataset.collate_fn)
    x, y = zip(*((batch[0], batch[1]) for batch in loader), strict=True)
    return torch.cat(x), torch.cat(y)


def _held_out(x: Tensor, y: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held_out, kept = order.tensor_split([int(HELD_OUT * len(x))])
    return (x[kept], y[kept]), (x[held_out], y[held_out])


def _dataset(x: Tensor, y: Tensor, task_label: int) -> AvalancheDataset:
    return AvalancheDataset(
        TensorDataset(x, y),
        data_attributes=[
            DataAttribute(y.tolist(), "targets"),
            TaskLabels(ConstantSequence(task_label, len(y))),
        ],
    )
