"""What is said of the regression with uncertainty: titles and a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from experiments.common.uncertainty.measures import TaskResult
from experiments.common.uncertainty.options import UncertaintyOptions

TITLES = {
    "single": "one head",
    "multi": "a head for each task",
    "hypernetworks": "functions of von Oswald et al. 2020",
    "posterior-replay": "functions of Henning et al. 2021",
}


def panel_title(results: Sequence[TaskResult], tasks: Sequence[int]) -> str:
    """What was measured, in one line."""
    covered = ", ".join(f"{results[task].coverage:.0f}" for task in tasks)
    ratios = [r for task in tasks if (r := results[task].ratio) is not None]
    wider = f",\nepistemic band {min(ratios):.1f} times wider outside" if ratios else ""
    name = f"task {tasks[0]}" if len(tasks) == 1 else f"tasks {tasks[0]} to {tasks[-1]}"
    return f"{name}: truth in the bands on {covered} %{wider}"


def describe(options: UncertaintyOptions) -> str:
    """The main settings, as a title."""
    return f"PriorEWC, {TITLES[options.head]}, {TITLES[options.task_set]}, {options.method}"


def summary(results: Sequence[Sequence[TaskResult]], options: UncertaintyOptions) -> Table:
    """One row for each seed and task."""
    table = Table(
        title=describe(options),
        caption="covered: % of the domain where the truth is within two standard deviations; "
        "wider: epistemic standard deviation outside all domains, relative to inside",
    )
    columns = ("seed", "task", "covered", "RMSE", "epistemic", "wider", "in gaps", "beyond")
    for column in columns:
        table.add_column(column, justify="right")
    for seed, tasks in enumerate(results):
        for r in tasks:
            ratios = (r.ratio, r.ratio_gaps, r.ratio_beyond)
            table.add_row(
                str(seed),
                str(r.task),
                f"{r.coverage:.1f}",
                f"{r.rmse:.3f}",
                f"{r.epistemic_std:.3f}",
                *("-" if ratio is None else f"{ratio:.1f}" for ratio in ratios),
            )
    return table
