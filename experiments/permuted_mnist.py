"""Compare methods on Permuted MNIST.

All ten digits in every experience, each time under another permutation of the pixels, learned
one after the other by an MLP: without protection, with Avalanche's own EWC, with PriorEWCPlugin,
through a hypernetwork (in the task scenario), and all at once (joint, the upper bound). In the
class scenario, each permutation's digits count as ten classes of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro
from avalanche.benchmarks import CLScenario, PermutedMNIST

from experiments.compare import compare
from experiments.hypernet import HypernetOptions
from experiments.mnist import require_mnist
from experiments.options import Options, Scenario, with_strengths

# Chosen on held-out training data (--validate) in the domain scenario with seed 0: for EWC of 100,
# 1000, 10^4 and 10^5, for PriorEWC of 30, 100, 300 and 1000 with prior variances of 0.3, 1 and 100.
# The other scenarios take the same.
EWC_LAMBDA: dict[Scenario, float] = {"task": 1e4, "domain": 1e4, "class": 1e4}
PRIOR_EWC_LAMBDA: dict[Scenario, float] = {"task": 100.0, "domain": 100.0, "class": 100.0}


@dataclass(frozen=True, kw_only=True)
class PermutedMNISTOptions(Options):
    """Settings of the comparison on Permuted MNIST."""

    scenario: Scenario = "domain"
    """What is told and asked: task (the task label is given, one head per task), domain (no task
    label, one head for all) or class (no task label, ten new classes per permutation)."""
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
            chunk_size=160_000, embedding_dim=96, chunk_embedding_dim=96, init="hyperfan"
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


def main(options: PermutedMNISTOptions) -> None:
    """Run the comparison."""
    require_mnist(options.dataset_root)

    def benchmark(seed: int) -> CLScenario:
        return PermutedMNIST(
            options.experiences,
            seed=seed,
            return_task_id=options.scenario == "task",
            dataset_root=options.dataset_root,
        )

    compare(
        "permuted-mnist",
        benchmark,
        with_strengths(options, EWC_LAMBDA, PRIOR_EWC_LAMBDA),
        new_classes=10 if options.scenario == "class" else 0,
    )


if __name__ == "__main__":
    main(tyro.cli(PermutedMNISTOptions, description=__doc__))
