"""One comparison of the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch

from benchmarks.timing import repeated, run_in_turn

Function = Callable[[], object]


@dataclass(frozen=True)
class Limit:
    """What a ratio is wanted to be: at most so much, or at least."""

    value: float
    at_least: bool = False

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.value:g}"

    def holds(self, ratio: float) -> bool:
        """Whether the ratio is as wanted."""
        return ratio >= self.value if self.at_least else ratio <= self.value


@dataclass(frozen=True)
class Row:
    """One thing compared with another.

    Attributes:
        section: of the report.
        name: of the thing.
        reference: of the other.
        ratios: in each round, how many times the other's cost it has; or, where the limit is one
            from below, how many times faster it is.
        cost: its median, in ``unit``.
        unit: of the cost.
        threads: that PyTorch used.
        limit: of the median ratio.
    """

    section: str
    name: str
    reference: str
    ratios: list[float]
    cost: float
    unit: str = "ms"
    threads: int = 1
    limit: Limit | None = None

    @property
    def ratio(self) -> float:
        """Median."""
        return median(self.ratios)


def in_turn(
    section: str,
    functions: Mapping[str, Function],
    *,
    repeats: int,
    reference: str | None = None,
    limits: Mapping[str, Limit] | None = None,
    per_call: float | Mapping[str, float] = 1,
) -> list[Row]:
    """Time functions one after the other, again and again, against one of them.

    Args:
        section: of the report.
        functions: by name. Short ones are called several times in a row.
        repeats: rounds.
        reference: name of the one that the others are compared with; by default the first.
        limits: of the ratios, by name.
        per_call: units of work (say, iterations) in a call, of all or by name; costs are per unit.
    """
    reference = reference or next(iter(functions))
    loops = {name: repeated(function, 0.02) for name, function in functions.items()}
    seconds = run_in_turn({name: run for name, (run, _) in loops.items()}, repeats)
    units = dict.fromkeys(functions, per_call) if not isinstance(per_call, Mapping) else per_call
    costs = {n: [s / loops[n][1] / units.get(n, 1) for s in times] for n, times in seconds.items()}
    return [
        Row(
            section,
            name,
            reference,
            [cost / other for cost, other in zip(times, costs[reference], strict=True)],
            1e3 * median(times),
            threads=torch.get_num_threads(),
            limit=(limits or {}).get(name),
        )
        for name, times in costs.items()
        if name != reference
    ]
