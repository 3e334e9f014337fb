"""Pictures of what a network with a posterior predicts on the real line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from avalanche_hnet import RegressionPrediction
from avalanche_hnet.benchmarks import Regression1D


@dataclass(frozen=True)
class Panel:
    """One curve and the tasks whose data it is about."""

    title: str
    tasks: Sequence[int]
    x: NDArray[np.float64]
    """Increasing inputs, shape (B,)."""
    prediction: RegressionPrediction
    """For these inputs, shape (B, 1)."""


def draw_uncertainty(benchmark: Regression1D, panels: Sequence[Panel], title: str) -> Figure:
    """Data, true functions, predictive means and bands of two standard deviations, side by side.

    The dark band is epistemic: it is where f(x) is believed to be. The light rim is what the noise
    adds to that for the targets. Domains of the panel's tasks are shaded. The panels have one
    vertical range, which shows three times that of the data; bands may leave it.
    """
    width = 9 if len(panels) == 1 else 4.5 * len(panels)
    figure = Figure(figsize=(width, 4.8), layout="constrained")
    row = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, panel in zip(row, panels, strict=True):
        _draw(axes, benchmark, panel)
        axes.set_title(panel.title, fontsize=10)
        axes.set_xlabel("x")
    row[0].set_ylabel("y")
    values = np.concatenate([_data(benchmark, task)[1] for task in range(len(benchmark.domains))])
    low, high = values.min(), values.max()
    row[0].set_ylim(low - (high - low), high + (high - low))
    row[0].set_xlim(panels[0].x[0], panels[0].x[-1])
    figure.suptitle(title)
    handles, labels = row[0].get_legend_handles_labels()
    n_columns = len(labels) if len(panels) > 1 else 3
    figure.legend(handles, labels, loc="outside lower center", ncols=n_columns, fontsize=9)
    return figure


def _draw(axes: Axes, benchmark: Regression1D, panel: Panel) -> None:
    x, mean = panel.x, panel.prediction.mean[:, 0].numpy()
    epistemic = 2 * panel.prediction.epistemic_variance[:, 0].sqrt().numpy()
    total = 2 * panel.prediction.variance[:, 0].sqrt().numpy()
    colour = "tab:blue"
    axes.fill_between(
        x,
        mean - epistemic,
        mean + epistemic,
        color=colour,
        alpha=0.5,
        linewidth=0,
        label="epistemic, ± 2 standard deviations",
    )
    for sign, label in ((1, "added by the noise"), (-1, None)):
        axes.fill_between(
            x,
            mean + sign * epistemic,
            mean + sign * total,
            color=colour,
            alpha=0.25,
            linewidth=0,
            label=label,
        )
    axes.plot(x, mean, color="darkblue", linewidth=1.5, label="predictive mean")
    axes.plot(x, mean - total, color=colour, linewidth=0.5)
    axes.plot(x, mean + total, color=colour, linewidth=0.5)
    for number, task in enumerate(panel.tasks):
        first = number == 0
        low, high = benchmark.domains[task]
        axes.axvspan(
            low, high, color="0.93", zorder=0, linewidth=0, label="domain" if first else None
        )
        inside = np.linspace(low, high, 200)
        axes.plot(
            inside,
            benchmark.functions[task](inside[:, None]),
            "--",
            color="black",
            linewidth=1.2,
            label="true function" if first else None,
        )
        x, y = _data(benchmark, task)
        axes.plot(
            x,
            y,
            "o",
            color="tab:orange",
            markeredgecolor="black",
            markeredgewidth=0.3,
            markersize=3.5 if len(x) <= 40 else 2.2,
            label="data" if first else None,
        )


def _data(benchmark: Regression1D, task: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Training inputs and targets (N,)."""
    dataset = benchmark.train_stream[task].dataset
    x, y, *_ = next(iter(DataLoader(dataset, batch_size=len(dataset))))
    return x[:, 0].numpy(), y[:, 0].numpy()
