"""Compare methods on split digits: real data that ships with scikit-learn.

Five experiences of two digits each, learned one after the other by an MLP: without protection,
with Avalanche's own EWC, with PriorEWCPlugin, and all at once (joint, the upper bound).
"""

from __future__ import annotations

from dataclasses import dataclass

import tyro
from avalanche.benchmarks import CLScenario

from avalanche_hnet.benchmarks import SplitDigits
from experiments.compare import compare
from experiments.options import Options, Scenario, with_strengths

# The best on held-out training data (--validate) of 1, 10, ..., 10^6, over three seeds.
EWC_LAMBDA: dict[Scenario, float] = {"task": 100.0, "domain": 100.0, "class": 100.0}
PRIOR_EWC_LAMBDA: dict[Scenario, float] = {"task": 10.0, "domain": 10.0, "class": 10.0}


@dataclass(frozen=True, kw_only=True)
class SplitDigitsOptions(Options):
    """Settings of the comparison on split digits."""

    iterations: int = 200
    """Training iterations per experience."""


def main(options: SplitDigitsOptions) -> None:
    """Run the comparison."""

    def benchmark(seed: int) -> CLScenario:
        return SplitDigits(
            5,
            seed=seed,
            return_task_id=options.scenario == "task",
            class_ids_from_zero_in_each_exp=options.scenario != "class",
        )

    options = with_strengths(options, EWC_LAMBDA, PRIOR_EWC_LAMBDA)
    compare("split-digits", benchmark, options)


if __name__ == "__main__":
    main(tyro.cli(SplitDigitsOptions, description=__doc__))
