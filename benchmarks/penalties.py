"""An iteration with EWC after the first experience, against one without."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from avalanche.benchmarks import CLScenario
from avalanche.training.plugins import EWCPlugin, SupervisedPlugin
from torch import nn

from avalanche_hnet import InMemoryPlugin, PriorEWCPlugin
from benchmarks.networks import mlp, resnet
from benchmarks.rows import Limit, Row, in_turn
from benchmarks.strategies import in_the_last_experience, naive, random_stream
from benchmarks.timing import threads

MAX_RANK = 16
PLAIN, KRONECKER = "PriorEWCPlugin", "PriorEWCPlugin with Kronecker products"
LOW_RANK = f"{KRONECKER}, max_rank={MAX_RANK}"


def rows(repeats: int) -> list[Row]:
    """An MLP and a ResNet-18, both learned by Adam, all data from memory."""
    with threads(1):
        timed = _rows(
            "MLP 784-400-400-10, batches of 128",
            lambda: mlp(784, 400, 400, 10),
            random_stream([128, 40 * 128], (784,), 10, labels=False),
            128,
            3 * repeats,
            {PLAIN: Limit(1.15), KRONECKER: Limit(2), LOW_RANK: Limit(1.4)},
        )
    with threads(2):
        timed += _rows(
            "ResNet-18, 32×32, batches of 32",
            resnet,
            random_stream([32, 2 * 32], (3, 32, 32), 10, labels=False),
            32,
            repeats,
            {PLAIN: Limit(1.15), KRONECKER: Limit(1.3), LOW_RANK: Limit(1.3)},
        )
    return timed


def _rows(
    network: str,
    make_model: Callable[[], nn.Module],
    benchmark: CLScenario,
    batch_size: int,
    repeats: int,
    limits: Mapping[str, Limit],
) -> list[Row]:
    plugins: dict[str, list[SupervisedPlugin]] = {
        "Naive": [],
        PLAIN: [PriorEWCPlugin(1e-3)],
        KRONECKER: [PriorEWCPlugin(1e-3, structure="kronecker")],
        LOW_RANK: [PriorEWCPlugin(1e-3, structure="kronecker", max_rank=MAX_RANK)],
        "Avalanche's online EWC": [EWCPlugin(1e-3, mode="online", decay_factor=1.0)],
    }
    functions = {}
    for name, of_method in plugins.items():
        torch.manual_seed(0)
        strategy = naive(make_model(), InMemoryPlugin(), *of_method, batch_size=batch_size)
        in_the_last_experience(strategy, benchmark)
        functions[f"{name}, {network}"] = strategy.training_epoch
    n_iterations = len(strategy.dataloader)
    of_rows = {f"{name}, {network}": limit for name, limit in limits.items()}
    return in_turn("EWC", functions, repeats=repeats, limits=of_rows, per_call=n_iterations)
