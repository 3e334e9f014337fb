"""Pairs of runs that one seed makes equal, and the page that says so.

``python -m tests.support.determinism`` writes the table of that page.
"""

import io
import random
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.logging import TensorboardLogger, TextLogger
from avalanche.models import MultiHeadClassifier
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from avalanche_hnet import (
    CheckpointPlugin,
    FixedTarget,
    InMemoryPlugin,
    IsolatedEvaluationPlugin,
    PriorEWCPlugin,
)
from tests.support.hypernets import hyper_model, learner
from tests.support.models import MultiHead
from tests.support.strategies import naive
from tests.support.streams import task_stream

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "determinism.md"
EQUAL, OTHER = "equal bit for bit", "other weights"


@dataclass(frozen=True)
class Setting:
    """What is not meant to matter."""

    in_memory: bool = False
    logging: bool = False
    evaluation: bool = False
    isolated: bool = False
    interrupted: bool = False
    num_workers: int = 0


PLAIN = Setting()
PAIRS = {
    "the same again": PLAIN,
    "`InMemoryPlugin` or Avalanche's loaders": replace(PLAIN, in_memory=True),
    "with or without logging": replace(PLAIN, logging=True),
    "2 workers or none": replace(PLAIN, num_workers=2),
    "with or without evaluations in between, `IsolatedEvaluationPlugin`": replace(
        PLAIN, evaluation=True, isolated=True
    ),
    "started again after two of three experiences, `CheckpointPlugin`": replace(
        PLAIN, interrupted=True
    ),
    "all of these at once": Setting(True, True, True, True, True, 2),
    "with or without evaluations in between, without that plugin": replace(PLAIN, evaluation=True),
}


def dropping(n_out=2):
    """A network that takes random numbers in training."""
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, n_out))


def _multi_head():
    model = MultiHead(MultiHeadClassifier(8))
    model.features.append(nn.Dropout(0.2))
    return model


def _by_naive(*protection):
    def make(plugins, **options):
        model = _multi_head()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        return naive(model, *plugins, *protection, optimizer=optimizer, **options)

    return make


def _hypernetwork(plugins, **options):
    model = hyper_model(dropping(n_out=6), multi_head=True)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    regularizer = FixedTarget(beta=0.5, tasks_per_step=1)
    return learner(
        model, regularizer, *plugins, optimizer=optimizer, in_memory=False, log_every=1, **options
    )


def _prior_ewc(**options):
    return lambda plugins, **rest: _by_naive(PriorEWCPlugin(10.0, log_every=1, **options))(
        plugins, **rest
    )


METHODS = {
    "`Naive`": _by_naive(),
    "`PriorEWC`": _prior_ewc(fisher="sampled"),
    "`PriorEWC`, Kronecker": _prior_ewc(structure="kronecker", n_fisher=15),
    "hypernetwork": _hypernetwork,
}


def run(method, setting):
    """All that a run has learned, from one seed."""
    if not setting.interrupted:
        return _run(method, setting)
    with tempfile.TemporaryDirectory() as folder:
        _run(method, setting, folder, n_experiences=2)
        return _run(method, setting, folder)


def _run(method, setting, checkpoints=None, n_experiences=3):
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(0)
    with tempfile.TemporaryDirectory() as folder:
        plugins = [IsolatedEvaluationPlugin()] if setting.isolated else []
        plugins += [InMemoryPlugin()] if setting.in_memory else []
        plugins += [CheckpointPlugin(checkpoints)] if checkpoints else []
        loggers = [TextLogger(io.StringIO()), TensorboardLogger(folder)] if setting.logging else []
        options = {"eval_every": 1 if setting.evaluation else -1}
        if setting.logging:
            options["evaluator"] = EvaluationPlugin(
                accuracy_metrics(minibatch=True, epoch=True, experience=True, stream=True),
                loss_metrics(minibatch=True, epoch=True, experience=True, stream=True),
                loggers=loggers,
            )
        strategy = METHODS[method](plugins, **options)
        stream = task_stream(3, offset=True)
        workers = {"num_workers": setting.num_workers}
        for experience in stream.train_stream[:n_experiences]:
            strategy.train(experience, [stream.test_stream], **workers)
            if setting.evaluation:
                strategy.eval(stream.test_stream, **workers)
        for logger in loggers[1:]:
            logger.writer.close()
    learned = [p.posterior.state_dict() for p in strategy.plugins if isinstance(p, PriorEWCPlugin)]
    if regularizer := getattr(strategy, "regularizer", None):
        learned.append(regularizer.state_dict())
    return [strategy.model.state_dict(), strategy.optimizer.state_dict(), *learned]


def equal(first, second):
    """Whether nested containers hold the same bits."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[k], second[k]) for k in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second


def cell(method, pair):
    return EQUAL if equal(run(method, PLAIN), run(method, PAIRS[pair])) else OTHER


def rows_of_page():
    """By pair and method: the cell."""
    rows = {}
    for line in PAGE.read_text().splitlines():
        pair, *cells = [part.strip() for part in line.strip("|").split("|")]
        if line.startswith("| ") and pair in PAIRS:
            rows |= {(pair, m): c for m, c in zip(METHODS, cells, strict=True)}
    return rows


def write():
    lines = ["| | " + " | ".join(METHODS) + " |", "|---" * (1 + len(METHODS)) + "|"]
    for pair in PAIRS:
        lines.append(f"| {pair} | " + " | ".join(cell(m, pair) for m in METHODS) + " |")
    table = "\n".join(lines) + "\n"
    pattern = r"(?<=## What is equal\n\n)(?:\|.*\n)*"
    PAGE.write_text(re.sub(pattern, lambda _: table, PAGE.read_text()))


if __name__ == "__main__":
    write()
