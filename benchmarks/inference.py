"""Inferring among 50 tasks against 50 forward passes of networks that are there already.

One thread. The hypernetwork's time is given with its weights in the cache (all batches of an
evaluation but the first) and without (the first: generating included). Peak memory is that of
processes of their own, all of Python and PyTorch included.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from avalanche_hnet import ChunkedHyperNetwork, HyperModel, TaskInference
from benchmarks.timing import ratio_table, run_in_turn

N_TASKS = 50
BATCH_SIZES = (128, 500)
REPEATS = 7
MEGABYTE = 2**10  # in the units of ru_maxrss on Linux


def make_target(n_hidden: int) -> nn.Sequential:
    """An MLP for images of 784 pixels and two classes."""
    layers = [nn.Linear(784, n_hidden), nn.ReLU(), nn.Linear(n_hidden, n_hidden), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(n_hidden, 2))


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
    for label in range(n_tasks):
        model._add_task(label)
    return model


def functions(n_hidden: int, batch_size: int) -> dict[str, Callable[[], object]]:
    """What is timed."""
    torch.manual_seed(0)
    target = make_target(n_hidden)
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
        model._cache.clear()
        outputs: Tensor = inference(x)
        return outputs

    return {
        f"{N_TASKS} plain networks": plain,
        "task inference": lambda: inference(x),
        "task inference, weights generated anew": uncached,
        "the hypernetwork's tasks one by one": loop,
    }


def peak(n_tasks: int) -> None:
    """Print the peak memory of inferring among so many tasks, in megabytes."""
    torch.set_num_threads(1)
    inference = TaskInference(make_model(make_target(400), n_tasks), tasks=range(n_tasks))
    inference(torch.randn(500, 1, 28, 28))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEGABYTE)


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    console = Console()
    for n_hidden in (400, 100):
        for batch_size in BATCH_SIZES:
            seconds = run_in_turn(functions(n_hidden, batch_size), REPEATS)
            title = f"784-{n_hidden}-{n_hidden}-2, {N_TASKS} tasks, batch of {batch_size}"
            console.print(ratio_table(seconds, f"{N_TASKS} plain networks", title))
    table = Table(title="784-400-400-2, batch of 500: peak memory in megabytes")
    table.add_column("tasks", justify="right")
    table.add_column("process", justify="right")
    for n_tasks in (2, 50, 200, 500):
        command = [sys.executable, "-m", "benchmarks.inference", str(n_tasks)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        table.add_row(str(n_tasks), f"{float(done.stdout.split()[-1]):.0f}")
    console.print(table)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        peak(int(sys.argv[1]))
    else:
        main()
