"""Figure of docs/explanation/all-tasks.md: what protecting more and more tasks costs.

``python docs/figures/all_tasks.py`` measures and draws it anew, in half a minute.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import torch
from matplotlib.figure import Figure
from torch import nn

from avalanche_hnet import ChunkedHyperNetwork, FixedTarget
from avalanche_hnet.core.regularizers import Experience

PICTURE = Path(__file__).parents[1] / "explanation" / "all-tasks.png"
N_TASKS = (1, 2, 5, 10, 20, 50, 100)


def make_hypernetwork(n_tasks: int) -> ChunkedHyperNetwork:
    """For a main network 784-400-400-2, in chunks of 42,000 weights."""
    torch.manual_seed(0)
    target = nn.Sequential(
        nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 2)
    )
    hypernetwork = ChunkedHyperNetwork(
        target, chunk_size=42_000, chunk_embedding_dim=96, embedding_dim=96, hidden=(10, 10)
    )
    for _ in range(n_tasks):
        hypernetwork.add_task()
    return hypernetwork


def milliseconds(hypernetwork: ChunkedHyperNetwork, regularizer: FixedTarget) -> float:
    """Median time of the penalty's value and gradient, all tasks protected."""
    tasks = tuple(range(hypernetwork.n_tasks))
    regularizer.before_experience(hypernetwork, Experience(tasks, n_samples=1))
    theta = hypernetwork.shared_parameters()
    step = {name: 1e-3 * torch.randn_like(p) for name, p in theta.items()}
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        regularizer.penalty(theta, step)
        seconds.append(time.perf_counter() - start)
    return 1e3 * median(seconds[1:])


def main() -> None:
    """Measure, draw and save."""
    torch.set_num_threads(1)
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    ax = figure.subplots()
    for form, marker in (("direct", "s-"), ("quadratic", "o-")):
        times = [
            milliseconds(make_hypernetwork(n), FixedTarget(form=form, lookahead="sgd"))
            for n in N_TASKS
        ]
        ax.loglog(N_TASKS, times, marker, label=f"{form} form")
    ax.set_xticks(N_TASKS, [str(n) for n in N_TASKS])
    ax.set_yticks([1, 3, 10, 30, 100, 300], ["1", "3", "10", "30", "100", "300"])
    ax.minorticks_off()
    ax.set_xlabel("protected tasks")
    ax.set_ylabel("ms for value and gradient")
    ax.set_title("fix-target penalty, 475,202 weights, one thread", fontsize=11)
    ax.grid(alpha=0.3)
    ax.legend()
    figure.savefig(PICTURE, dpi=100)


if __name__ == "__main__":
    main()
