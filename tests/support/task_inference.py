"""Task inference one sample and one task at a time, to compare with."""

import copy
import warnings
from functools import partial

import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.models import SimpleMLP, as_multitask
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from avalanche_hnet import BlockMultiHeadClassifier, FixedTarget, Gaussian, PriorEWCPlugin
from avalanche_hnet.benchmarks import Regression1D
from avalanche_hnet.metrics import task_inference_metrics
from tests.support.hypernets import hyper_model, learner
from tests.support.models import MultiHead, TwoNames, mlp
from tests.support.strategies import naive
from tests.support.streams import tensors

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


LOG_ZERO = -1000.0


def benchmark_of(labels=(0, 1, 2), n_samples=12, offset=False):
    """Tasks that differ in the means of their inputs and the direction of their classes."""
    generator, data = torch.Generator().manual_seed(1), []
    for number, _ in enumerate(labels):
        y = torch.arange(n_samples) % 2
        x = torch.randn(n_samples, 6, generator=generator)
        x += (y - 0.5).view(-1, 1) * torch.linspace(1, 3, 6).roll(number)
        x[:, number] += 2
        data.append((x, y + 2 * number if offset else y))
    return tensors_benchmark(train_tensors=data, test_tensors=data, task_labels=[*labels])


def inputs(benchmark):
    return torch.cat([tensors(e)[0] for e in benchmark.test_stream])


def loop(x, tasks, probabilities, score, classes=None, n_columns=2):
    """Log-probabilities by column, the chosen tasks, and their margin over the others."""
    logs, chosen, margins = [], [], []
    for n in range(len(x)):
        scores, columns = [], []
        for task in tasks:
            p = probabilities(x[n : n + 1], task)[0].double()
            scores.append(float(score(p, x[n : n + 1], task)))
            by_column = [0.0] * n_columns
            for output, value in enumerate(p.tolist()):
                by_column[output if classes is None else classes[task][output]] = value
            columns.append(torch.tensor(by_column))
        best = min(range(len(tasks)), key=lambda t: scores[t])
        chosen.append(tasks[best])
        logs.append(columns[best].log().clamp_min(LOG_ZERO))
        margins.append(sorted(scores)[1] - sorted(scores)[0] if len(tasks) > 1 else 1.0)
    return torch.stack(logs), torch.tensor(chosen), min(margins)


def by_entropy(p, x, task):
    return -sum(v * torch.log(v) for v in p if v > 0)


def by_doubt(p, x, task):
    return 1 - p.max()


SCORES = {"entropy": by_entropy, "confidence": by_doubt}


def assert_is(model, x, expected):
    found, (logs, chosen, margin) = model(x), expected
    assert margin > 1e-9  # else the choice is up to rounding
    assert torch.equal(model.inferred_tasks, chosen)
    torch.testing.assert_close(found, logs, rtol=1e-9, atol=1e-10)
    assert not found.requires_grad
    return found


@torch.no_grad()
def plain(model, x, task):
    return copy.deepcopy(model).eval()(x, torch.tensor([task])).softmax(1)


class Normalised(nn.Sequential):
    def __init__(self, n_out=2):
        super().__init__(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, n_out))


class OverSteps(nn.Module):
    """A recurrent network on six features as six steps."""

    def __init__(self, n_out=2):
        super().__init__()
        self.lstm, self.last = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, n_out)

    def forward(self, x):
        return self.last(self.lstm(x[:, :, None])[0][:, -1])


TARGETS = {
    "mlp": partial(mlp, n_out=2),
    "batch norm": Normalised,
    "lstm": OverSteps,
    "two names": TwoNames,
}


def hypernet(target="mlp", *, offset=False, labels=(3, 1, 4), train=True, **options):
    benchmark = benchmark_of(labels, offset=offset)
    make = TARGETS[target]
    if options.get("multi_head"):
        options["target"] = make(n_out=2 * len(labels))
    model = hyper_model(options.pop("target", None) or make(), **options)
    strategy = learner(model, FixedTarget(0.1) if train else None, lr=0.05)
    if train:
        for experience in benchmark.train_stream:
            strategy.train(experience)
    return model, benchmark, strategy


HYPERNETS = {
    **{target: {"target": target} for target in TARGETS},
    "multi-head": {"multi_head": True},
    "multi-head, unique classes": {"multi_head": True, "offset": True},
    "multi-head, batch norm": {"target": "batch norm", "multi_head": True},
    "multi-head, lstm": {"target": "lstm", "multi_head": True},
    **{
        f"{remaining}, {target}": {
            "target": target,
            "remaining": remaining,
            "hypernet": {"generate": "*weight*"},
        }
        for remaining in ("per_task", "shared", "frozen", "frozen_after_first")
        for target in ("mlp", "batch norm")
    },
    "chunks": {"hypernet": {"chunk_size": 30}},
}


def evaluated(loggers=(), confusion_matrix=True):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return EvaluationPlugin(
            accuracy_metrics(experience=True, stream=True),
            task_inference_metrics(experience=True, stream=True, confusion_matrix=confusion_matrix),
            loggers=[*loggers],
        )


def strategy_of(kind, plugin, *others, evaluator=None, **options):
    options = {"evaluator": evaluator or evaluated(), "train_epochs": 3, **options}
    if kind == "hypernet":
        return learner(hyper_model(), FixedTarget(0.1), plugin, *others, lr=0.05, **options)
    return naive(MultiHead(BlockMultiHeadClassifier(8)), plugin, *others, **options)


def trained_regression():
    """A network with a head for each of three functions, its posterior and the benchmark."""
    benchmark = Regression1D(n_train=20, n_test=9)
    model = as_multitask(SimpleMLP(num_classes=1, input_size=1, hidden_size=12), "classifier")
    ewc = PriorEWCPlugin(likelihood=Gaussian(0.1))
    strategy = naive(model, ewc, criterion=nn.MSELoss(), lr=0.01)
    for experience in benchmark.train_stream:
        strategy.train(experience)
    return model, ewc.posterior, benchmark
