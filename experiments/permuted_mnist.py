"""Compare methods on Permuted MNIST.

All ten digits in every experience, each time under another permutation of the pixels, learned
one after the other by an MLP: without protection, with Avalanche's own EWC, with PriorEWCPlugin,
through a hypernetwork, and all at once (joint, the upper bound). In the
class scenario, each permutation's digits count as ten classes of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro
from avalanche.benchmarks import CLScenario, PermutedMNIST

from experiments.compare import compare
from experiments.hypernet import HypernetOptions
from experiments.mnist import require_mnist
from experiments.options import Options, Scenario, with_strengths

# Chosen on held-out training data (--validate) in the domain scenario with seed 0: for EWC of 100,
# 1000, 10^4 and 10^5, for PriorEWC of 30, 100, 300 and 1000 with prior variances of 0.3, 1 and 100.
# The other scenarios take the same. The hypernetwork, with the first three permutations and 2000
# iterations: hidden layers of 10, 10 and 25, 25, noise on the inputs of 0.5, 0.7 and 1.
EWC_LAMBDA: dict[str, float] = {"task": 1e4, "domain": 1e4, "class": 1e4}
PRIOR_EWC_LAMBDA: dict[str, float] = {"task": 100.0, "domain": 100.0, "class": 100.0}


@dataclass(frozen=True, kw_only=True)
class PermutedMNISTOptions(Options):
    """Settings of the comparison on Permuted MNIST."""

    scenario: Scenario | Literal["all"] = "domain"
    """What is told and asked: task (the task label is given, one head per task), domain (no task
    label, the same labels in every experience), class (no task label, ten new classes per
    permutation), or all three in turn. The hypernetwork infers the task where it is not told."""
    experiences: int = 10
    """Number of permutations."""
    hidden: tuple[int, ...] = (1000, 1000)
    """Widths of the hidden layers of the MLP."""
    iterations: int = 1000
    """Training iterations per experience."""
    batch_size: int = 128
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
    prior_variance: float = 0.3
    """Variance of the prior of PriorEWC."""
    n_fisher: int | None = 10_000
    """Samples for the Fisher of PriorEWC."""
    dataset_root: Path | None = None
    """Folder that holds MNIST/raw, or where to download it. Default: Avalanche's."""

    def __post_init__(self) -> None:
        """Refuse what no run could use."""
        super().__post_init__()
        if self.experiences < 1:
            raise ValueError(f"experiences must be at least 1, got {self.experiences}")


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

    runs = [with_strengths(o, EWC_LAMBDA, PRIOR_EWC_LAMBDA) for o in options.by_scenario()]
    compare("permuted-mnist", make_benchmark, runs, new_classes=10)


if __name__ == "__main__":
    main(tyro.cli(PermutedMNISTOptions, description=__doc__))
