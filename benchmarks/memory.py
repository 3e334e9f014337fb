"""Peak memory of a hypernetwork's training iteration with few and many tasks to regularise.

Each is measured in a process of its own: the peak of its resident memory, all of Python and
PyTorch included.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from avalanche_hnet import ChunkedHyperNetwork, FixedTarget
from avalanche_hnet.core.regularizers import Experience
from benchmarks.rows import Limit, Row

TASKS = (2, 100)
FORMS = ("quadratic", "direct")


def peak() -> float:
    """Of this process so far, in megabytes, as Linux tells it."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return float(line.split()[1]) / 2**10


def measure(form: str, n_tasks: int) -> None:
    """Print the peak of iterations on a main network of 500,105 weights."""
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
    regularizer.before_experience(network, Experience(tuple(range(n_tasks)), n_samples=1))
    for _ in range(3):
        task_gradient()
        theta = network.shared_parameters()
        step = {n: -1e-3 * p.grad for n, p in theta.items() if p.grad is not None}
        regularizer.penalty(theta, step)
    print(peak())


def rows(repeats: int) -> list[Row]:
    """The whole process, with 2 and with 100 tasks, in both forms of the regulariser."""
    measured = []
    for form in FORMS:
        peaks = []
        for n_tasks in TASKS:
            command = [sys.executable, "-m", "benchmarks.memory", form, str(n_tasks)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks.append(float(done.stdout.split()[-1]))
        few, many = (f"{form} form, 500,105 weights, {n} tasks" for n in TASKS)
        ratio = peaks[1] / peaks[0]
        limit = Limit(1.1) if form == "quadratic" else None
        measured.append(Row("memory", many, few, [ratio], peaks[1], "MB", limit=limit))
    return measured


if __name__ == "__main__":
    measure(sys.argv[1], int(sys.argv[2]))
