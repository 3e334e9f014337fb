"""Times of functions that are run in turn, so that a noisy machine disturbs all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch


def run_in_turn(
    functions: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
    """Seconds of each function in each of ``repeats`` rounds, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            _wait()
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


@contextmanager
def threads(number: int) -> Iterator[None]:
    """So many threads for PyTorch inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
