"""Networks with batch statistics, and a plain loop that keeps those of each task."""

import warnings

import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.models import MultiHeadClassifier, MultiTaskModule
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from avalanche_hnet import TaskInferencePlugin, TaskStatisticsPlugin
from tests.support.strategies import naive

EXACT = {"rtol": 1e-12, "atol": 1e-12}


class Heads(MultiTaskModule):
    """One head per task after batch normalisation."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 5), nn.BatchNorm1d(5)
        self.head = MultiHeadClassifier(5, masking=False)

    def forward(self, x, task_labels):
        return self.head(self.norm(self.layer(x)).tanh(), task_labels)


def one_head():
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))


def shifted(labels, n_samples=15):
    """One experience for each label, of tasks whose inputs differ in mean and scale."""
    generator, data = torch.Generator().manual_seed(1), []
    for number in range(len(labels)):
        y = torch.arange(n_samples) % 2
        x = torch.randn(n_samples, 4, generator=generator) + y[:, None]
        data.append(((1 + number) * x + 3 * number, y))
    return tensors_benchmark(train_tensors=data, test_tensors=data, task_labels=labels)


def with_heads(model, benchmark):
    for experience in benchmark.train_stream:
        model.head.adaptation(experience)
    return model


def columns(experience):
    rows = [(x, y) for x, y, *_ in experience.dataset]
    return torch.stack([x for x, _ in rows]), torch.tensor([y for _, y in rows])


def names(model):
    """The running statistics of a model with one normalisation layer."""
    return [n for n in dict(model.named_buffers()) if "running_" in n or "num_batches" in n]


def statistics_of(model):
    buffers = dict(model.named_buffers())
    return [buffers[n].clone() for n in names(model)]


def trained(*plugins, labels=(0, 1, 2), **options):
    torch.manual_seed(0)
    benchmark = shifted([*labels])
    ours = TaskStatisticsPlugin()
    inference = TaskInferencePlugin(statistics=ours.statistics, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = EvaluationPlugin(accuracy_metrics(experience=True))
    order = [ours, *plugins, inference] if len(labels) % 2 else [inference, *plugins, ours]
    strategy = naive(with_heads(Heads(), benchmark), *order, evaluator=evaluator)
    strategy.train(benchmark.train_stream)
    return strategy, ours.statistics, benchmark
