"""Numbers of several seeds in one cell of a table."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation; one value stands alone."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{mean(values):.2f} ± {stdev(values):.2f}"
