"""Pictures of one-dimensional functions and of what a model makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import CLExperience
from avalanche.evaluation.metric_results import MetricValue
from avalanche.models.utils import avalanche_forward
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from matplotlib.figure import Figure
from torch import Tensor, nn

from avalanche_hnet.benchmarks import Regression1D


class FitsPlugin(SupervisedPlugin):
    """Draws data, true functions and fits after each experience: a PNG and a figure in the logs."""

    def __init__(self, benchmark: Regression1D, title: str, path: Path) -> None:
        super().__init__()
        self.benchmark = benchmark
        self.title = title
        self.path = path
        self.learned: set[int] = set()

    def after_training_exp(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Draw what has been learned so far."""
        # Joint training has the labels of all tasks in one experience.
        self.learned |= {int(t) for t in strategy.adapted_dataset.targets_task_labels}
        count = len(self.learned)
        title = f"{self.title}, {count} of {len(self.benchmark.functions)} functions learned"
        figure = draw_fits(self.benchmark, strategy.model, sorted(self.learned), title)
        figure.savefig(self.path.with_name(f"{self.path.name}-after{count}.png"), dpi=150)
        step = strategy.clock.train_iterations
        strategy.evaluator.publish_metric_value(MetricValue(self, "Fits", figure, step))


def draw_fits(benchmark: Regression1D, model: nn.Module, learned: list[int], title: str) -> Figure:
    """One panel: for each task its true function and data, and the fit of those learned."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    was_training = model.training
    model.eval()
    for task, (low, high) in enumerate(benchmark.domains):
        colour = f"C{task}"
        inside = np.linspace(low, high, 200)[:, None]
        axes.plot(inside, benchmark.functions[task](inside), "--", color="0.3", linewidth=1)
        x, y = _data(benchmark.train_stream[task])
        axes.plot(x, y, ".", color=colour, markersize=3, alpha=0.5)
        if task not in learned:
            continue
        with torch.no_grad():
            dense = torch.from_numpy(inside).to(x)
            fit = avalanche_forward(model, dense, torch.full((len(dense),), task))
            error = (fit - torch.from_numpy(benchmark.functions[task](inside)).to(fit)).square()
        axes.plot(
            inside,
            fit,
            color=colour,
            linewidth=2,
            label=f"task {task}, mean squared error {error.mean():.1e}",
        )
    model.train(was_training)
    axes.plot([], [], "--", color="0.3", linewidth=1, label="true functions")
    axes.set_xlabel("x")
    axes.set_ylabel("y")
    axes.set_title(title)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _data(experience: CLExperience) -> tuple[Tensor, Tensor]:
    samples = [experience.dataset[i] for i in range(len(experience.dataset))]
    return torch.stack([s[0] for s in samples]), torch.stack([s[1] for s in samples])
