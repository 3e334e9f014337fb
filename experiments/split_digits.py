"""Compare methods on split digits: real data that ships with scikit-learn.

Five experiences of two digits each, learned one after the other by an MLP: without protection,
with Avalanche's own EWC, with PriorEWCPlugin, through a hypernetwork, and all at once (joint, the
upper bound).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import tyro
from avalanche.benchmarks import CLScenario

from avalanche_hnet.benchmarks import SplitDigits
from experiments.compare import compare
from experiments.hypernet import HypernetOptions
from experiments.options import Options, Scenario, split_arguments, with_strengths

# Chosen on held-out training data (--validate), seeds 0 to 2. EWC: of 1, 10, ..., 10^6 (task: to
# 10^8). PriorEWC: of 10, 100, ..., 10^6 (task, domain: to 10^7) with variances of 1 and 10^6 (task,
# domain: also 100 and 10^4). In the class scenario no setting gets beyond 22 %. The hypernetwork:
# strengths of 0.01 and 0.1 with hidden layers of 10, 10 or 32, 32, with and without chunks.
EWC_LAMBDA: dict[str, float] = {"task": 1e6, "domain": 1e5, "class": 1e5}
PRIOR_EWC_LAMBDA: dict[str, float] = {"task": 1e5, "domain": 1e4, "class": 1e4}


@dataclass(frozen=True, kw_only=True)
class SplitDigitsOptions(Options):
    """Settings of the comparison on split digits."""

    scenario: Scenario | Literal["all"] = "all"
    """What is told and asked: task (the task label is given, one head per task), domain (no task
    label, the same labels in every experience), class (no task label, classes add up), or all
    three in turn. The hypernetwork, which is told the task in training, infers it otherwise."""
    iterations: int = 200
    """Training iterations per experience."""
    hypernet: HypernetOptions = field(
        default_factory=lambda: HypernetOptions(
            beta=0.1, hidden=(32, 32), chunk_size=2000, init="hyperfan"
        )
    )
    """Settings of the hypernetwork."""
    prior_variance: float = 1e6
    """Variance of the prior of PriorEWC: so few samples per experience leave it little to say."""


def make_benchmark(options: Options, seed: int) -> CLScenario:
    """The stream of a seed."""
    return SplitDigits(5, seed=seed, **split_arguments(options.scenario))


def main(options: SplitDigitsOptions) -> None:
    """Run the comparison."""
    torch.set_num_threads(1)  # such small networks are slower with more

    runs = [with_strengths(o, EWC_LAMBDA, PRIOR_EWC_LAMBDA) for o in options.by_scenario()]
    compare("split-digits", make_benchmark, runs)


if __name__ == "__main__":
    main(tyro.cli(SplitDigitsOptions, description=__doc__))
