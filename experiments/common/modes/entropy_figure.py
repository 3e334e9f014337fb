"""Pictures of how sure a network is in the plane."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import CLExperience
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor

from avalanche_hnet import TaskInference
from avalanche_hnet.benchmarks import GaussianMixture2D

# The plane is drawn from -EXTENT to EXTENT in both directions, at so many points in each.
EXTENT, POINTS = 9.0, 121
# As far as a grey on which all colours can be seen.
COLOURS = LinearSegmentedColormap.from_list("entropy", ["white", "0.4"])


@dataclass(frozen=True)
class Panel:
    """What is drawn over the plane: predictions by one model, and the task that it is about."""

    model: TaskInference
    title: str
    task: int | None = None


def draw_entropy(
    benchmark: GaussianMixture2D, panels: list[Panel], title: str, n_classes: int
) -> Figure:
    """Entropy of the class probabilities over the plane, one panel for each model.

    Where a model chooses between tasks, each region is tinted in the colour of the task that it
    is assigned to. Training data and modes (as circles of five standard deviations) have the colour
    of their task; those of other tasks than the panel's are hollow and dashed.

    Args:
        benchmark: whose data and modes are drawn.
        panels: from left to right.
        title: of the figure.
        n_classes: that there is to choose from, whose logarithm is the end of the colour scale.
    """
    figure = Figure(figsize=(max(3.1 * len(panels), 4.4) + 1, 4.4), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    is_tinted = False
    line = torch.linspace(-EXTENT, EXTENT, POINTS)
    points = torch.cartesian_prod(line, line)  # the second coordinate runs fastest
    for ax, panel in zip(axes, panels, strict=True):
        logarithms = panel.model(points).double()
        entropy = -(logarithms.exp() * logarithms).sum(1)
        image = ax.imshow(
            _image(entropy),
            extent=(-EXTENT, EXTENT, -EXTENT, EXTENT),
            origin="lower",
            cmap=COLOURS,
            vmin=0,
            vmax=log(n_classes),
        )
        chosen = _image(panel.model.inferred_tasks)
        if len(tasks := np.unique(chosen)) > 1:
            is_tinted = True
            for task in tasks:
                region = (chosen == task).astype(float)
                ax.contourf(line, line, region, [0.5, 1.5], colors=[f"C{task}"], alpha=0.3)
        for task, experience in enumerate(benchmark.train_stream):
            _draw_modes(ax, benchmark, experience, task, panel.task in (None, task))
        ax.set_xticks([-5, 0, 5])
        ax.set_yticks([-5, 0, 5])
        ax.set_title(panel.title, fontsize=9)
        ax.set_xlabel("$x_1$")
    axes[0].set_ylabel("$x_2$")
    bar = figure.colorbar(image, ax=axes, shrink=0.85)
    bar.set_label(f"entropy in nats, up to ln {n_classes}")
    figure.suptitle(title, fontsize=11)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        title="tint: the task inferred" if is_tinted else None,
        loc="outside lower center",
        ncols=len(labels),
        fontsize=8,
        title_fontsize=8,
    )
    return figure


def _draw_modes(
    ax: Axes, benchmark: GaussianMixture2D, experience: CLExperience, task: int, filled: bool
) -> None:
    """The task's modes and training samples, a marker for each class, hollow unless filled."""
    colour = f"C{task}"
    x = torch.stack([sample[0] for sample in experience.dataset])
    y = np.array([sample[1] for sample in experience.dataset])
    style: dict[str, Any] = {"color": colour, "markersize": 3, "markeredgewidth": 0.6}
    for marker, class_ in zip("o^sDvP", np.unique(y), strict=False):
        fill = colour if filled else "none"
        ax.plot(*x[y == class_].T, marker, markerfacecolor=fill, **style)
    for mean in benchmark.means[task]:
        line = "-" if filled else ":"
        radius = 5 * benchmark.std
        ax.add_patch(Circle(mean, radius, fill=False, edgecolor=colour, linestyle=line))
    ax.plot([], [], "o", color=colour, markersize=5, label=f"modes of task {task}")


def _image(values: Tensor) -> np.ndarray:
    """Values at all points as an image, whose rows are the second coordinate."""
    return values.reshape(POINTS, POINTS).T.numpy()
