"""Compare methods on split digits: real data that ships with scikit-learn.

Five experiences of two digits each, learned one after the other by an MLP: without protection,
with Avalanche's own EWC, with PriorEWCPlugin, through a hypernetwork, and all at once (joint, the
upper bound).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from avalanche.benchmarks import CLScenario

from avalanche_hnet.benchmarks import SplitDigits
from experiments.common.command import run_command
from experiments.common.comparison.compare import compare
from experiments.common.comparison.options import Options, split_arguments
from experiments.common.hypernet import HypernetOptions
from experiments.common.settings import Count, Positive, Scenario

# Chosen on held-out training data (--validate), seeds 0 to 2: the hypernetwork's strength, of 0.01
# and 0.1, with hidden layers of 10, 10 or 32, 32, with and without chunks. For the prior variance
# see the strengths in common/methods.py.


@dataclass(frozen=True, kw_only=True)
class SplitDigitsOptions(Options):
    """Settings of the comparison on split digits."""

    experiment = "split-digits"

    scenario: Scenario | Literal["all"] = "all"
    """What is told and asked: task (the task label is given, one head per task), domain (no task
    label, the same labels in every experience), class (no task label, classes add up), or all
    three in turn. The hypernetwork, which is told the task in training, infers it otherwise."""
    iterations: Count = 200
    """Training iterations per experience."""
    hypernet: HypernetOptions = field(
        default_factory=lambda: HypernetOptions(
            beta=0.1, hidden=(32, 32), chunk_size=2000, init="hyperfan"
        )
    )
    """Settings of the hypernetwork."""
    prior_variance: Positive = 1e6
    """Variance of the prior of PriorEWC: so few samples per experience leave it little to say."""
    prior_ewc_kron_variance: Positive = 100.0
    """The same with a Kronecker-factored posterior."""


def make_benchmark(options: Options, seed: int) -> CLScenario:
    """The stream of a seed."""
    return SplitDigits(5, seed=seed, **split_arguments(options.scenario))


def main(options: SplitDigitsOptions) -> None:
    """Run the comparison."""
    torch.set_num_threads(1)  # such small networks are slower with more

    compare(make_benchmark, options)


if __name__ == "__main__":
    run_command(main, SplitDigitsOptions, __doc__)
