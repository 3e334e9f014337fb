"""Peak memory of a training iteration with few and many tasks to regularise.

Each is measured in a process of its own: the peak of its resident memory, all of Python and
PyTorch included.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from avalanche_hnet import ChunkedHyperNetwork, FixedTarget, Gaussian, KroneckerPosterior
from avalanche_hnet.core.regularizers import Experience
from benchmarks.networks import mlp
from benchmarks.rows import Limit, Row

TASKS = (2, 100)
EXPERIENCES = (1, 20)
WIDTHS = (784, 1000, 1000, 10)
FORMS = ("quadratic", "direct")
KRONECKER: dict[str, int | None] = {"one product": 1, "all products": None}


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


def kronecker_posterior(
    n_experiences: int, rank: int | None, widths: Sequence[int] = WIDTHS
) -> KroneckerPosterior:
    """That of an MLP after experiences of random data, each with other weights."""
    model, posterior = mlp(*widths), KroneckerPosterior(rank=rank)
    parameters = dict(model.named_parameters())
    posterior.align(parameters)
    active = {name: torch.ones_like(p, dtype=torch.bool) for name, p in parameters.items()}
    for _ in range(n_experiences):
        batch = torch.randn(128, widths[0]), torch.randn(128, widths[-1])
        fisher = posterior.fisher(model, [batch], likelihood=Gaussian())
        posterior.update(parameters, fisher, len(batch[0]), active)
    return posterior


def measure_kronecker(products: str, n_experiences: int) -> None:
    """Print the peak of a Kronecker-factored posterior's updates and of its penalty's gradient."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    posterior = kronecker_posterior(n_experiences, KRONECKER[products])
    parameters = {n: nn.Parameter(mean + 0.01) for n, mean in posterior.mean.items()}
    posterior.ewc_term()(parameters).backward()
    print(peak())


def rows(repeats: int) -> list[Row]:
    """Whole processes: both forms of the regulariser, and Kronecker products, one or all."""
    measured = []
    for form in FORMS:
        limit = Limit(1.1) if form == "quadratic" else None
        titles = [f"{form} form, 500,105 weights, {n} tasks" for n in TASKS]
        measured.append(_row(form, TASKS, titles, limit))
    weights = sum(n_outputs * (n_inputs + 1) for n_inputs, n_outputs in pairwise(WIDTHS))
    for products, rank in KRONECKER.items():
        limit = Limit(1.1) if rank == 1 else None
        network = f"Kronecker posterior with {products}, {weights:,} weights"
        titles = [f"{network}, {n} experience{'s'[: n > 1]}" for n in EXPERIENCES]
        measured.append(_row(products, EXPERIENCES, titles, limit))
    return measured


def _row(kind: str, numbers: Sequence[int], titles: Sequence[str], limit: Limit | None) -> Row:
    peaks = []
    for number in numbers:
        command = [sys.executable, "-m", "benchmarks.memory", kind, str(number)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout.split()[-1]))
    few, many = titles
    return Row("memory", many, few, [peaks[1] / peaks[0]], peaks[1], "MB", limit=limit)


if __name__ == "__main__":
    kind, number = sys.argv[1], int(sys.argv[2])
    (measure_kronecker if kind in KRONECKER else measure)(kind, number)
