"""Of which distribution the labels are that a Fisher is the expectation over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from avalanche_hnet.core.common.likelihoods import Categorical, Gaussian, Likelihood

FisherKind = Literal["empirical", "sampled", "exact"]

_OF_REAL, _OF_CLASSES = Gaussian(), Categorical()


@dataclass(frozen=True)
class FisherOptions:
    """What :func:`diagonal_fisher` and :func:`kronecker_factors` have in common.

    Raises:
        TypeError: for a ``likelihood`` that is none.
        ValueError: for an unknown ``kind``, or ``max_samples`` below 1.
    """

    likelihood: Likelihood | None
    kind: FisherKind
    max_samples: int | None
    generator: torch.Generator | None

    def __post_init__(self) -> None:
        if self.kind not in get_args(FisherKind):
            raise ValueError(f"kind must be one of {get_args(FisherKind)}, got {self.kind!r}")
        size = self.max_samples
        if size is not None and (not isinstance(size, int) or size < 1):
            raise ValueError(f"max_samples must be an integer of at least 1, got {size}")
        if self.likelihood is not None and not isinstance(self.likelihood, Likelihood):
            raise TypeError(f"likelihood must be a Likelihood, got {self.likelihood!r}")


def fisher_factors(outputs: Tensor, targets: Tensor, options: FisherOptions) -> Iterator[Tensor]:
    """Tensors c_k (B, …) such that the Fisher of sample n is Σ_k (J_nᵀ c_kn)²."""
    likelihood = options.likelihood
    if likelihood is None:
        likelihood = _OF_REAL if targets.is_floating_point() else _OF_CLASSES
    counted = None if options.kind == "empirical" else likelihood.counted(outputs, targets)
    if options.kind == "exact":
        for factor in likelihood.fisher_factors(outputs):
            yield factor if counted is None else factor * counted
        return
    if options.kind == "sampled":
        targets = likelihood.sample(outputs, options.generator)
    gradient = likelihood.nll_gradient(outputs, targets)
    yield gradient if counted is None else gradient * counted
