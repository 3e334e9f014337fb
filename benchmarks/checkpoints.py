"""What ``CheckpointPlugin`` takes of a run, writing after each experience."""

from __future__ import annotations

import tempfile
import time
from typing import Any
from unittest.mock import patch

import torch
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training.plugins import EvaluationPlugin

from avalanche_hnet import CheckpointPlugin, InMemoryPlugin, PriorEWC
from avalanche_hnet.benchmarks import SplitDigits
from avalanche_hnet.plugins.checkpointing.run import Run
from benchmarks.networks import mlp
from benchmarks.rows import Limit, Row
from benchmarks.timing import threads

_STRUCTURES = ("diagonal", "kronecker")
_EPOCHS = 40  # about 200 iterations of each experience, as in experiments.split_digits


def rows(repeats: int) -> list[Row]:
    """Split digits with PriorEWC, as its experiment trains it.

    The share is that of the time between two calls, disk included: runs with and without the plugin
    differ by more for other reasons.
    """
    timed = []
    with threads(1):
        for structure in _STRUCTURES:
            runs = [_seconds(structure) for _ in range(repeats)]
            writing = [w for w, _ in runs]
            name = f"a run on split digits with CheckpointPlugin, {structure}"
            ratios = [total / (total - w) for w, total in runs]
            milliseconds = 1e3 * sum(writing) / len(writing)
            timed.append(
                Row("checkpoints", name, "without", ratios, milliseconds, limit=Limit(1.02))
            )
    return timed


def _seconds(structure: Any) -> tuple[float, float]:
    """Of the checkpoints and of the whole run."""
    spent = 0.0
    save = Run._save

    def timed(*args: Any, **kwargs: Any) -> Any:
        nonlocal spent
        start = time.perf_counter()
        try:
            return save(*args, **kwargs)
        finally:
            spent += time.perf_counter() - start

    torch.manual_seed(0)
    stream = SplitDigits(5, seed=0)
    model = mlp(64, 100, 100, 10)
    with tempfile.TemporaryDirectory() as folder, patch.object(Run, "_save", timed):
        strategy = PriorEWC(
            model=model,
            optimizer=torch.optim.Adam(model.parameters(), 1e-3),
            structure=structure,
            train_mb_size=64,
            train_epochs=_EPOCHS,
            eval_mb_size=500,
            plugins=[InMemoryPlugin(), CheckpointPlugin(folder)],
            evaluator=EvaluationPlugin(
                accuracy_metrics(experience=True, stream=True),
                loss_metrics(epoch=True, experience=True),
                loggers=[],
            ),
        )
        start = time.perf_counter()
        for experience in stream.train_stream:
            strategy.train(experience)
            strategy.eval(stream.test_stream)
        return spent, time.perf_counter() - start
