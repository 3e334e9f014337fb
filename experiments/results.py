"""Accuracies of a run, and the numbers and tables made of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.table import Table


@dataclass(frozen=True)
class Result:
    """Accuracies in percent: ``matrix[k][j]`` on experience j after training on experience k.

    Joint training has one row.
    """

    method: str
    seed: int
    matrix: list[list[float]]

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


def write_csv(results: Sequence[Result], path: Path) -> None:
    """One line per accuracy."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "seed", "trained_experiences", "experience", "accuracy"])
        for result in results:
            n_experiences = len(result.matrix[-1])
            for k, row in enumerate(result.matrix):
                trained = n_experiences if len(result.matrix) == 1 else k + 1
                for j, accuracy in enumerate(row):
                    writer.writerow([result.method, result.seed, trained, j, f"{accuracy:.4f}"])


def write_json(results: Sequence[Result], settings: dict[str, Any], path: Path) -> None:
    """Settings, and for each method its averages, forgetting and matrices by seed."""
    summary = {
        "settings": settings,
        "methods": {
            method: {
                "average_accuracy": mean(r.average for r in group),
                "average_accuracy_std": stdev(a)
                if len(a := [r.average for r in group]) > 1
                else None,
                "results": [
                    asdict(r) | {"average": r.average, "forgetting": r.forgetting} for r in group
                ],
            }
            for method, group in by_method(results).items()
        },
    }
    path.write_text(json.dumps(summary, indent=2, default=str) + "\n")
