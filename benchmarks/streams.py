"""An epoch through Avalanche, against a plain loop over the same tensors."""

from __future__ import annotations

import copy
import tempfile
import time
from typing import Any

import torch
from avalanche.benchmarks import CLExperience, PermutedMNIST
from avalanche.benchmarks.datasets import default_dataset_location
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.logging import TensorboardLogger
from avalanche.training.plugins import EvaluationPlugin

from avalanche_hnet import InMemoryPlugin
from avalanche_hnet.data.store import TensorStore
from benchmarks.networks import mlp
from benchmarks.rows import Function, Limit, Row, in_turn
from benchmarks.strategies import DEVICE, Loop, naive
from benchmarks.timing import threads

N_SLOW = 6400  # samples through Avalanche's own loader


def rows(repeats: int) -> list[Row]:
    """Permuted MNIST with a 784-100-10 MLP, for large and small batches."""
    if not (default_dataset_location("mnist") / "MNIST" / "raw").exists():
        print("MNIST is not in place, so an epoch of Permuted MNIST is not timed")
        return []
    torch.manual_seed(0)
    experience = PermutedMNIST(1, seed=0).train_stream[0]
    data = experience.dataset.train()
    start = time.perf_counter()
    x, y, _ = TensorStore(2**32).get(data, data.collate_fn, torch.device(DEVICE))
    reading = time.perf_counter() - start
    timed = []
    with threads(1):
        for batch_size in (128, 32):
            timed += _rows(experience, x, y, batch_size, repeats)
        loop = Loop(mlp(784, 100, 10), x, y, 128)
        start = time.perf_counter()
        loop()
        epoch = time.perf_counter() - start
    name = "reading the 60,000 samples, once"
    reference = "an epoch of the plain loop, batches of 128"
    timed.append(Row("epoch", name, reference, [reading / epoch], 1e3 * reading))
    return timed


def _rows(
    experience: CLExperience, x: torch.Tensor, y: torch.Tensor, batch_size: int, repeats: int
) -> list[Row]:
    suffix = f", batches of {batch_size}"
    loop = Loop(mlp(784, 100, 10), x, y, batch_size)
    fast, measured, slow = (
        naive(mlp(784, 100, 10), *plugins, batch_size=batch_size, evaluator=evaluator)
        for plugins, evaluator in (
            ([InMemoryPlugin()], None),
            ([InMemoryPlugin()], _evaluator()),
            ([], None),
        )
    )
    some = _with(experience, experience.dataset.subset(range(N_SLOW)))
    functions: dict[str, Function] = {
        f"plain loop{suffix}": loop,
        f"Naive, InMemoryPlugin{suffix}": lambda: fast.train(experience),
        f"the same with metrics and TensorBoard{suffix}": lambda: measured.train(experience),
        f"Naive, Avalanche's loader{suffix}": lambda: slow.train(some),
    }
    n_iterations = dict.fromkeys(functions, float(loop.n_iterations))
    n_iterations[f"Naive, Avalanche's loader{suffix}"] = N_SLOW / batch_size
    limits = {f"Naive, InMemoryPlugin{suffix}": Limit(1.3)}
    return in_turn("epoch", functions, repeats=repeats, limits=limits, per_call=n_iterations)


def _with(experience: CLExperience, dataset: Any) -> CLExperience:
    other = copy.copy(experience)
    other._dataset = dataset
    return other


def _evaluator() -> EvaluationPlugin:
    return EvaluationPlugin(
        accuracy_metrics(epoch=True, experience=True),
        loss_metrics(epoch=True),
        loggers=[TensorboardLogger(tempfile.mkdtemp())],
    )
