"""Compare methods on Split MNIST.

Five experiences of two digits each, learned one after the other by an MLP: without protection,
with Avalanche's own EWC, with PriorEWCPlugin, through a hypernetwork, and all at once (joint, the
upper bound).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro
from avalanche.benchmarks import CLScenario, SplitMNIST

from experiments.compare import compare
from experiments.hypernet import HypernetOptions
from experiments.mnist import require_mnist
from experiments.options import Options, split_arguments, with_strengths

# Chosen on held-out training data (--validate) in the task scenario with seed 0: for EWC of 1000,
# 10^4, 10^5 and 10^6, for PriorEWC of 10, 100, 1000 and 10^4 with variances of 1, 100 and 10^4.
# The other scenarios take the same. The hypernetwork, with 400, 400 hidden units, batches of 128
# and pairs in order: of strengths of 0.001, 0.01 and 0.1, with and without lookahead; of a dropout
# of 0.5 and noise on the inputs of 1 and 1.5, which was chosen for the class scenario.
EWC_LAMBDA: dict[str, float] = {"task": 1e5, "domain": 1e5, "class": 1e5}
PRIOR_EWC_LAMBDA: dict[str, float] = {"task": 100.0, "domain": 100.0, "class": 100.0}


@dataclass(frozen=True, kw_only=True)
class SplitMNISTOptions(Options):
    """Settings of the comparison on Split MNIST."""

    hypernet: HypernetOptions = field(
        default_factory=lambda: HypernetOptions(
            chunk_size=42_000,
            embedding_dim=96,
            chunk_embedding_dim=96,
            init="hyperfan",
        )
    )
    """Settings of the hypernetwork."""
    shuffle_classes: bool = True
    """Draw the pairs of digits with the seed, rather than 0 and 1, 2 and 3, ... as in most papers,
    which are easier to tell apart."""
    dataset_root: Path | None = None
    """Folder that holds MNIST/raw, or where to download it. Default: Avalanche's."""


def make_benchmark(options: SplitMNISTOptions, seed: int) -> CLScenario:
    """The stream of a seed."""
    return SplitMNIST(
        5,
        seed=seed,
        shuffle=options.shuffle_classes,
        dataset_root=options.dataset_root,
        **split_arguments(options.scenario),
    )


def main(options: SplitMNISTOptions) -> None:
    """Run the comparison."""
    require_mnist(options.dataset_root)
    runs = [with_strengths(o, EWC_LAMBDA, PRIOR_EWC_LAMBDA) for o in options.by_scenario()]
    compare("split-mnist", make_benchmark, runs)


if __name__ == "__main__":
    main(tyro.cli(SplitMNISTOptions, description=__doc__))
