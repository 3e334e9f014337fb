"""Inferring among 50 tasks against 50 forward passes of networks that are there already.

The hypernetwork's time is given with its weights in the cache (all batches of an evaluation but the
first) and without (the first: generating included).
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from avalanche_hnet import ChunkedHyperNetwork, HyperModel, TaskInference
from benchmarks.networks import mlp
from benchmarks.rows import Function, Limit, Row, in_turn
from benchmarks.timing import threads

N_TASKS = 50


def make_model(target: nn.Module, n_tasks: int) -> HyperModel:
    """The target with a chunked hypernetwork that knows so many tasks."""
    hypernetwork = ChunkedHyperNetwork(
        target,
        chunk_size=min(42_000, sum(p.numel() for p in target.parameters())),
        chunk_embedding_dim=96,
        embedding_dim=96,
        hidden=(10, 10),
        init="hyperfan",
    )
    model = HyperModel(target, hypernetwork).eval()
    model.adaptation(SimpleNamespace(task_labels=range(n_tasks)))
    return model


def of_network(n_hidden: int, batch_size: int) -> dict[str, Function]:
    """What is timed."""
    torch.manual_seed(0)
    target = mlp(784, n_hidden, n_hidden, 2)
    model = make_model(target, N_TASKS)
    networks = [model.main_network(label).eval() for label in range(N_TASKS)]
    inference = TaskInference(model, tasks=range(N_TASKS))
    x = torch.randn(batch_size, 1, 28, 28)

    @torch.no_grad()
    def plain() -> list[Tensor]:
        return [network(x) for network in networks]

    @torch.no_grad()
    def loop() -> list[Tensor]:
        return [model(x, label) for label in range(N_TASKS)]

    def uncached() -> Tensor:
        model._generated.cache.clear()
        outputs: Tensor = inference(x)
        return outputs

    name = f"task inference among {N_TASKS} tasks, 784-{n_hidden}-{n_hidden}-2"
    return {
        f"{N_TASKS} forward passes of plain networks, batch of {batch_size}": plain,
        name: lambda: inference(x),
        f"{name}, weights generated anew": uncached,
        f"the hypernetwork's {N_TASKS} tasks one by one": loop,
    }


def rows(repeats: int) -> list[Row]:
    """With weights in the cache and without, and one task after the other."""
    with threads(1):
        functions = of_network(400, 128)
        limits = {"task inference among 50 tasks, 784-400-400-2": Limit(1.3)}
        return in_turn("inference", functions, repeats=repeats, limits=limits)
