"""Tables of accuracies, for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean

from rich.table import Table

from experiments.common.comparison.results import Result, by_method, by_scenario
from experiments.common.spread import mean_and_spread


def scenarios_table(results: Sequence[Result], title: str) -> Table:
    """Average accuracy of each method in each scenario."""
    table = Table(
        title=title, caption="average accuracy in %, mean ± standard deviation over seeds"
    )
    scenarios = list(by_scenario(results))
    for column in ("method", *scenarios):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for method, group in by_method(results).items():
        averages = {s: [r.average for r in seeds] for s, seeds in by_scenario(group).items()}
        table.add_row(
            method, *(mean_and_spread(averages[s]) if s in averages else "-" for s in scenarios)
        )
    return table


def summary_table(results: Sequence[Result], title: str) -> Table:
    """Average accuracy, forgetting and final accuracies per experience, for each method."""
    table = Table(title=title, caption="accuracy in %, mean ± standard deviation over seeds")
    table.add_column("method", no_wrap=True)
    table.add_column("average", justify="right", no_wrap=True)
    table.add_column("forgetting", justify="right", no_wrap=True)
    table.add_column("final accuracy on each experience")
    for method, group in by_method(results).items():
        forgetting = [f for r in group if (f := r.forgetting) is not None]
        finals = zip(*(r.matrix[-1] for r in group), strict=True)
        table.add_row(
            method,
            mean_and_spread([r.average for r in group]),
            mean_and_spread(forgetting) if forgetting else "-",
            "  ".join(f"{mean(values):.1f}" for values in finals),
        )
    return table


def inference_table(results: Sequence[Result], title: str) -> Table:
    """For methods that infer tasks, how often correctly, and the accuracy with the task told."""
    caption = "% of the samples, and accuracy in %, mean ± standard deviation over seeds"
    table = Table(title=title, caption=caption)
    for column in ("method", "task inferred correctly", "accuracy if told"):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for method, group in by_method([r for r in results if r.inference]).items():
        table.add_row(method, _means(r.inference for r in group), _means(r.told for r in group))
    return table


def _means(by_experience: Iterable[list[float] | None]) -> str:
    """Mean over experiences, and over seeds with its spread."""
    return mean_and_spread([mean(values) for values in by_experience if values])
