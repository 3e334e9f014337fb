"""Accuracies of a run, and the files that hold them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from experiments.common.run_folder import versions, write_json, write_text


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


def write_results(results: Sequence[Result], settings: Mapping[str, Any], folder: Path) -> None:
    """``results.csv`` and ``summary.json``; settings are those of each scenario."""
    write_csv(results, folder / "results.csv")
    write_json(summarized(results, settings), folder / "summary.json")


def write_csv(results: Sequence[Result], path: Path) -> None:
    """One line per accuracy."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["scenario", "method", "seed", "trained_experiences", "experience", "accuracy"])
    for result in results:
        n_experiences = len(result.matrix[-1])
        for k, row in enumerate(result.matrix):
            trained = n_experiences if len(result.matrix) == 1 else k + 1
            for j, accuracy in enumerate(row):
                names = [result.scenario, result.method, result.seed]
                writer.writerow([*names, trained, j, f"{accuracy:.4f}"])
    write_text(file.getvalue(), path)


def summarized(results: Sequence[Result], settings: Mapping[str, Any]) -> dict[str, Any]:
    """For each scenario its settings, and of each method averages, forgetting and matrices."""
    return {
        "versions": versions(),
        "scenarios": {
            scenario: {
                "settings": settings[scenario],
                "methods": {m: _of_method(seeds) for m, seeds in by_method(group).items()},
            }
            for scenario, group in by_scenario(results).items()
        },
    }


def _of_method(group: Sequence[Result]) -> dict[str, Any]:
    averages = [result.average for result in group]
    return {
        "average_accuracy": mean(averages),
        "average_accuracy_std": stdev(averages) if len(averages) > 1 else None,
        "results": [asdict(r) | {"average": r.average, "forgetting": r.forgetting} for r in group],
    }
