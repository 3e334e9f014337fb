"""Accuracies of a run, and the numbers and tables made of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.table import Table


@dataclass(frozen=True)
class Result:
    """Accuracies in percent: ``matrix[k][j]`` on experience j after training on experience k.

    Joint training has one row. Where tasks are inferred, ``inference`` is the share of samples, in
    percent, for which that is right at the end, for each experience, and ``told`` are the
    accuracies of the same model with the task told.
    """

    method: str
    seed: int
    matrix: list[list[float]]
    scenario: str = "task"
    inference: list[float] | None = None
    told: list[float] | None = None

    @property
    def average(self) -> float:
        """Final accuracy, averaged over experiences."""
        return mean(self.matrix[-1])

    @property
    def forgetting(self) -> float | None:
        """How much lower the final accuracy is than right after training, all but the last."""
        rows = len(self.matrix)
        if rows < 2:
            return None
        return mean(self.matrix[j][j] - self.matrix[-1][j] for j in range(rows - 1))


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation; one value stands alone."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{mean(values):.2f} ± {stdev(values):.2f}"


def by_method(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results of all seeds under their method, in order of appearance."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.method, []).append(result)
    return groups


def by_scenario(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results under their scenario, in order of appearance."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.scenario, []).append(result)
    return groups


def scenarios_table(results: Sequence[Result], title: str) -> Table:
    """Average accuracy of each method in each scenario."""
    table = Table(
        title=title, caption="average accuracy in %, mean ± standard deviation over seeds"
    )
    scenarios = list(by_scenario(results))
    for column in ("method", *scenarios):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for method, group in by_method(results).items():
        averages = {s: [r.average for r in found] for s, found in by_scenario(group).items()}
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


def write_csv(results: Sequence[Result], path: Path) -> None:
    """One line per accuracy."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["scenario", "method", "seed", "trained_experiences", "experience", "accuracy"]
        )
        for result in results:
            n_experiences = len(result.matrix[-1])
            for k, row in enumerate(result.matrix):
                trained = n_experiences if len(result.matrix) == 1 else k + 1
                for j, accuracy in enumerate(row):
                    names = [result.scenario, result.method, result.seed]
                    writer.writerow([*names, trained, j, f"{accuracy:.4f}"])


def write_json(
    results: Sequence[Result], settings: Mapping[str, Any], versions: Mapping[str, str], path: Path
) -> None:
    """For each scenario its settings, and of each method averages, forgetting and matrices."""
    summary = {
        "versions": versions,
        "scenarios": {
            scenario: {
                "settings": settings[scenario],
                "methods": {m: _summary(group) for m, group in by_method(found).items()},
            }
            for scenario, found in by_scenario(results).items()
        },
    }
    path.write_text(json.dumps(summary, indent=2, default=str) + "\n")


def _summary(group: Sequence[Result]) -> dict[str, Any]:
    averages = [result.average for result in group]
    return {
        "average_accuracy": mean(averages),
        "average_accuracy_std": stdev(averages) if len(averages) > 1 else None,
        "results": [asdict(r) | {"average": r.average, "forgetting": r.forgetting} for r in group],
    }
