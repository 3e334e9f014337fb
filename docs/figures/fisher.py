"""Figure of docs/explanation/fisher.md: the Fisher, its kinds, and what batch sizes do.

``python docs/figures/fisher.py`` draws it anew, in some ten seconds.
"""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from avalanche_hnet import diagonal_fisher
from avalanche_hnet.benchmarks import SplitDigits

PICTURE = Path(__file__).parents[1] / "explanation" / "fisher.png"
BATCH_SIZES = [2**power for power in range(11)]


def digits() -> tuple[Tensor, Tensor]:
    """All training images (N, 1, 8, 8) and their labels (N,)."""
    dataset = SplitDigits(1, shuffle=False).train_stream[0].dataset
    images = torch.stack([image for image, *_ in dataset])
    return images, torch.tensor([label for _, label, *_ in dataset])


def squared_batch_gradients(model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> float:
    """Mean over mini-batches of squared gradients of the mean loss, summed over weights."""
    order, total = torch.randperm(len(x)), 0.0
    batches = [part for part in order.split(batch_size) if len(part) == batch_size]
    for rows in batches:
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        total += sum(float(g.square().sum()) for g in gradients)
    return total / len(batches)


def fisher(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 128, **options: str) -> float:
    """The trace of the Fisher."""
    batches = zip(x.split(batch_size), y.split(batch_size), strict=True)
    values = diagonal_fisher(model, batches, **options)  # type: ignore[arg-type]
    return sum(float(v.sum()) for v in values.values())


def draw_batch_sizes(ax: Axes, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Ours against squares of mini-batch gradients."""
    ours = [fisher(model, x, y, size) for size in BATCH_SIZES]
    theirs = [squared_batch_gradients(model, x, y, size) for size in BATCH_SIZES]
    ax.loglog(BATCH_SIZES, ours, "o-", markersize=4, label="diagonal_fisher")
    ax.loglog(BATCH_SIZES, theirs, "s-", markersize=4, label="squared mini-batch gradients")
    ax.loglog(BATCH_SIZES, [ours[0] / b for b in BATCH_SIZES], "k:", label="1 / batch size")
    ax.set_xticks(BATCH_SIZES[::2], [str(size) for size in BATCH_SIZES[::2]])
    ax.minorticks_off()
    ax.set_xlabel("batch size")
    ax.set_ylabel("sum over all weights")
    ax.legend(fontsize=8)


def draw_kinds(ax: Axes, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """The three kinds while the network learns."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    traces: dict[str, list[float]] = {"empirical": [], "sampled": [], "exact": []}
    epochs = range(31)
    for _ in epochs:
        for kind, values in traces.items():
            values.append(fisher(model, x, y, kind=kind))
        for rows in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    for (kind, values), style in zip(traces.items(), ("-", ":", "--"), strict=True):
        ax.semilogy(epochs, values, style, linewidth=2, label=kind)
    ax.set_yticks([5, 10, 20, 50], ["5", "10", "20", "50"])
    ax.minorticks_off()
    ax.set_xlabel("epochs")
    ax.set_ylabel("sum over all weights")
    ax.legend(fontsize=8)


def main() -> None:
    """Draw and save."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    x, y = digits()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 10))
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_kinds(left, model, x, y)
    left.set_title("the three kinds while the network learns", fontsize=11)
    draw_batch_sizes(right, model, x, y)
    right.set_title("after learning, by batch size", fontsize=11)
    figure.savefig(PICTURE, dpi=100)


if __name__ == "__main__":
    main()
