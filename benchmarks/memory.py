"""Peak memory of a hypernetwork's training iteration with few and many tasks to regularise.

Each row is measured in a process of its own: the peak of its resident memory, all of Python and
PyTorch included, and how much of it the iterations added to what was there before them.
"""

from __future__ import annotations

import resource
import subprocess
import sys

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from avalanche_hnet import ChunkedHyperNetwork, FixedTarget
from avalanche_hnet.core.regularizers import Experience

TASKS = (2, 100)
FORMS = ("quadratic", "direct")
MEGABYTE = 2**10  # in the units of ru_maxrss on Linux


def peak() -> float:
    """Of this process so far, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEGABYTE


def measure(form: str, n_tasks: int) -> None:
    """Print the peaks before and after iterations on a main network of 500,105 weights."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    target = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 420), nn.ReLU(), nn.Linear(420, 400), nn.ReLU()
    )
    target.append(nn.Linear(400, 5))
    network = ChunkedHyperNetwork(
        target, chunk_size=42_000, chunk_embedding_dim=96, embedding_dim=96, hidden=(10, 10)
    )
    for _ in range(n_tasks + 1):
        network.add_task()
    regularizer = FixedTarget(form=form, targets="recomputed")
    x = torch.randn(128, 784)

    def task_gradient() -> None:
        weights = network.layout.views(network(n_tasks)[0])
        torch.func.functional_call(target, weights, (x,)).square().mean().backward()

    task_gradient()
    before = peak()
    regularizer.before_experience(network, Experience(tuple(range(n_tasks)), n_samples=1))
    for _ in range(3):
        task_gradient()
        theta = network.shared_parameters()
        step = {n: -1e-3 * p.grad for n, p in theta.items() if p.grad is not None}
        regularizer.penalty(theta, step)
    print(before, peak())


def main() -> None:
    """Print the table."""
    table = Table(title="peak memory in megabytes, target of 500,105 weights")
    for column in ("form", "tasks", "process", "times 2 tasks", "added by the iterations"):
        table.add_column(column, justify="right")
    for form in FORMS:
        first = None
        for n_tasks in TASKS:
            command = [sys.executable, "-m", "benchmarks.memory", form, str(n_tasks)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            before, after = (float(word) for word in done.stdout.split()[-2:])
            first = first or after
            ratio, added = f"{after / first:.3f}", f"{after - before:.0f}"
            table.add_row(form, str(n_tasks), f"{after:.0f}", ratio, added)
    Console().print(table)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(sys.argv[1], int(sys.argv[2]))
    else:
        main()
