"""Times of functions that are run in turn, so that a noisy machine disturbs all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

from rich.table import Table


def run_in_turn(
    functions: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
    """Seconds of each function in each of ``repeats`` rounds, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if round_ > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def repeated(function: Callable[[], object], at_least: float) -> tuple[Callable[[], None], int]:
    """The function called again and again for about so many seconds, and how often that is."""
    function()
    start = time.perf_counter()
    function()
    times = max(1, round(at_least / (time.perf_counter() - start)))

    def run() -> None:
        for _ in range(times):
            function()

    return run, times


def ratio_table(seconds: Mapping[str, list[float]], reference: str, title: str) -> Table:
    """Median, minimum and maximum over rounds of each function's time to the reference's."""
    table = Table(title=title)
    table.add_column("")
    for column in ("milliseconds", f"times {reference}", "minimum", "maximum"):
        table.add_column(column, justify="right")
    for name, times in seconds.items():
        ratios = [t / r for t, r in zip(times, seconds[reference], strict=True)]
        values = (median(ratios), min(ratios), max(ratios))
        table.add_row(name, f"{1e3 * median(times):.1f}", *(f"{v:.2f}" for v in values))
    return table
