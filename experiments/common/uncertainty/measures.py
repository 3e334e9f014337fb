"""How good the uncertainty of a regression is, inside the domains of the data and outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from avalanche_hnet import RegressionPrediction
from avalanche_hnet.benchmarks import Regression1D

# Of a task, at inputs (B,): mean and variances (B, 1).
Prediction = Callable[[int, NDArray[np.float64]], RegressionPrediction]

MARGIN = 2.0  # how far beyond the outermost domains to predict


@dataclass(frozen=True)
class TaskResult:
    """How good the predictions of one task are, in the end."""

    task: int
    coverage: float
    """Percentage of the domain where the true function lies within two standard deviations,
    epistemic and noise together."""
    rmse: float
    """Of the mean, against the true function on the domain."""
    epistemic_std: float
    """Average on the domain."""
    ratio: float | None
    """Average epistemic standard deviation outside all domains, relative to that on the domain;
    none where that is zero."""
    ratio_gaps: float | None
    """The same, between the domains alone."""
    ratio_beyond: float | None
    """The same, beyond the outermost domains alone."""


def evaluate(benchmark: Regression1D, task: int, prediction: Prediction) -> TaskResult:
    """Measure ``prediction(task, x)`` on the task's domain, and how it differs outside all."""
    inside = np.linspace(*benchmark.domains[task], 401)
    predicted = prediction(task, inside)
    truth = torch.from_numpy(benchmark.functions[task](inside[:, None]))
    error = (predicted.mean - truth).abs()
    width = predicted.epistemic_variance.sqrt().mean().item()

    x = np.linspace(*shown_interval(benchmark), 1201)
    low, high = domains_end_to_end(benchmark)
    is_outside = np.all([(x < a) | (x > b) for a, b in benchmark.domains], axis=0)
    widths = prediction(task, x).epistemic_variance[:, 0].sqrt().numpy()

    def relative_to_inside(where: NDArray[np.bool_]) -> float | None:
        return float(widths[where].mean()) / width if width > 0 and where.any() else None

    return TaskResult(
        task=task,
        coverage=100 * (error <= 2 * predicted.variance.sqrt()).double().mean().item(),
        rmse=error.square().mean().sqrt().item(),
        epistemic_std=width,
        ratio=relative_to_inside(is_outside),
        ratio_gaps=relative_to_inside(is_outside & (x > low) & (x < high)),
        ratio_beyond=relative_to_inside(is_outside & ((x < low) | (x > high))),
    )


def domains_end_to_end(benchmark: Regression1D) -> tuple[float, float]:
    """The least and the greatest end of a domain."""
    return min(low for low, _ in benchmark.domains), max(high for _, high in benchmark.domains)


def shown_interval(benchmark: Regression1D) -> tuple[float, float]:
    """What is drawn and measured of the line: [-6, 6] for the functions of the papers."""
    low, high = domains_end_to_end(benchmark)
    return low - MARGIN, high + MARGIN
