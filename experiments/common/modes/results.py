"""Accuracies of the classification of Gaussian modes, with a table and a file of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

from rich.table import Table

from experiments.common.modes.options import (
    GaussianMixtureOptions,
    ModeMethod,
    has_network_per_task,
)
from experiments.common.run_folder import versions
from experiments.common.settings import Head
from experiments.common.spread import mean_and_spread

# In the class scenario, by the authors' README (probabilistic/prob_gmm): with the task label given
# and without, the task inferred by entropy. Deterministic networks, and online EWC.
PUBLISHED: dict[tuple[ModeMethod, Head], str] = {
    ("hypernet", "separate"): "100 / 45",
    ("separate", "separate"): "100 / 71",
    ("naive", "separate"): "99.9 / 48",
    ("prior-ewc", "growing"): "- / 50",
    ("prior-ewc", "fixed"): "- / 67",
}


@dataclass(frozen=True)
class ModeResult:
    """Final accuracies in percent on the test data of all tasks, None where there is no such."""

    method: ModeMethod
    seed: int
    given: float | None
    """With the task label given."""
    not_given: float | None
    """Without it."""
    tasks: float | None
    """Samples whose task is inferred correctly."""

    def __str__(self) -> str:
        """What was correct, in one line."""
        correct = {"with the task given": self.given, "without task label": self.not_given}
        return ", ".join(f"{v:.0f} % correct {how}" for how, v in correct.items() if v is not None)


def summary(results: Sequence[ModeResult], options: GaussianMixtureOptions) -> Table:
    """Mean and spread over seeds of the accuracies of each method."""
    is_class = options.scenario == "class"
    table = Table(
        title=f"Gaussian mixture, {options.scenario} scenario, final accuracy in %",
        caption=f"mean ± standard deviation over the seeds 0 to {options.seeds - 1}"
        if options.seeds > 1
        else None,
    )
    table.add_column("method")
    for column in ("task given", "not given", "tasks found"):
        table.add_column(column, justify="right", no_wrap=True)
    if is_class:
        table.add_column("paper", justify="right", no_wrap=True)
    for method in options.methods:
        group = [r for r in results if r.method == method]
        cells = [
            mean_and_spread([v for r in group if (v := getattr(r, name)) is not None])
            if getattr(group[0], name) is not None
            else "-"
            for name in ("given", "not_given", "tasks")
        ]
        has_heads = not has_network_per_task(method)
        head: Head = options.head if has_heads else "separate"
        label = f"{method}, {head}" if is_class and has_heads else method
        published = [PUBLISHED.get((method, head), "-")] if is_class else []
        table.add_row(label, *cells, *published)
    return table


def summarized(results: Sequence[ModeResult], options: GaussianMixtureOptions) -> dict[str, Any]:
    """Settings, the accuracies of each seed, and their means and standard deviations."""
    methods: dict[str, Any] = {}
    for method in dict.fromkeys(result.method for result in results):
        group = [r for r in results if r.method == method]
        methods[method] = {"results": [asdict(r) for r in group]}
        for name in ("given", "not_given", "tasks"):
            values = [v for r in group if (v := getattr(r, name)) is not None]
            methods[method][name] = mean(values) if values else None
            methods[method][f"{name}_std"] = stdev(values) if len(values) > 1 else None
    return {"settings": asdict(options) | {"versions": versions()}, "methods": methods}
