"""Compare methods on Permuted MNIST.

All ten digits in every experience, each time under another permutation of the pixels, learned
one after the other by an MLP: without protection, with Avalanche's own EWC, with PriorEWCPlugin,
through a hypernetwork, and all at once (joint, the upper bound). In the
class scenario, each permutation's digits count as ten classes of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from avalanche.benchmarks import CLScenario, PermutedMNIST

from experiments.common.command import run_command
from experiments.common.comparison.compare import compare
from experiments.common.comparison.options import Options
from experiments.common.hypernet import HypernetOptions
from experiments.common.mnist import require_mnist
from experiments.common.settings import (
    Count,
    DatasetRoot,
    OptionalCount,
    Positive,
    Scenario,
    Widths,
)

# Chosen on held-out training data (--validate) in the domain scenario with seed 0, the first three
# permutations and 2000 iterations: the hypernetwork's hidden layers, of 10, 10 and 25, 25, with
# noise on the inputs of 0.5, 0.7 and 1. For the prior variance see the strengths in
# common/methods.py.


@dataclass(frozen=True, kw_only=True)
class PermutedMNISTOptions(Options):
    """Settings of the comparison on Permuted MNIST."""

    experiment = "permuted-mnist"

    scenario: Scenario | Literal["all"] = "domain"
    """What is told and asked: task (the task label is given, one head per task), domain (no task
    label, the same labels in every experience), class (no task label, ten new classes per
    permutation), or all three in turn. The hypernetwork infers the task where it is not told."""
    experiences: Count = 10
    """Number of permutations."""
    hidden: Widths = (1000, 1000)
    """Widths of the hidden layers of the MLP."""
    iterations: Count = 1000
    """Training iterations per experience."""
    batch_size: Count = 128
    """Samples per iteration."""
    hypernet: HypernetOptions = field(
        default_factory=lambda: HypernetOptions(
            chunk_size=160_000,
            embedding_dim=96,
            chunk_embedding_dim=96,
            hidden=(25, 25),
            init="hyperfan",
        )
    )
    """Settings of the hypernetwork."""
    prior_variance: Positive = 0.3
    """Variance of the prior of PriorEWC."""
    n_fisher: OptionalCount = 10_000
    """Samples for the Fisher of PriorEWC."""
    dataset_root: DatasetRoot = None


def make_benchmark(options: PermutedMNISTOptions, seed: int) -> CLScenario:
    """The stream of a seed."""
    return PermutedMNIST(
        options.experiences,
        seed=seed,
        return_task_id=True,  # for training; what must not know them in evaluation does not look
        dataset_root=options.dataset_root,
    )


def main(options: PermutedMNISTOptions) -> None:
    """Run the comparison."""
    require_mnist(options.dataset_root)
    compare(make_benchmark, options, new_classes=10)


if __name__ == "__main__":
    run_command(main, PermutedMNISTOptions, __doc__)
