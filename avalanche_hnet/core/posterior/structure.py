"""Posteriors by the structure of their precision."""

from __future__ import annotations

from typing import Literal

from avalanche_hnet.core.common.arguments import one_of
from avalanche_hnet.core.fisher.kronecker_sums import WeightSharing
from avalanche_hnet.core.posterior.gaussian import GaussianPosterior, PriorMean
from avalanche_hnet.core.posterior.kronecker import KroneckerPosterior
from avalanche_hnet.core.posterior.low_rank import MaxRank
from avalanche_hnet.core.posterior.protocol import Posterior

Structure = Literal["diagonal", "kronecker"]


def make_posterior(
    structure: Structure,
    prior_variance: float,
    prior_mean: PriorMean = "zero",
    rank: int | None = 1,
    weight_sharing: WeightSharing = "expand",
    max_rank: MaxRank = None,
) -> Posterior:
    """A :class:`GaussianPosterior` or a :class:`KroneckerPosterior` that knows nothing yet.

    Raises:
        TypeError, ValueError: if an argument is out of its range, or is of Kronecker products where
            there are none.
    """
    one_of(Structure, structure=structure)
    if structure == "kronecker":
        return KroneckerPosterior(prior_variance, prior_mean, rank, weight_sharing, max_rank)
    options = {
        "rank": (rank, 1),
        "weight_sharing": (weight_sharing, "expand"),
        "max_rank": (max_rank, None),
    }
    for name, (value, default) in options.items():
        if value != default:
            raise ValueError(f"{name}={value!r} needs structure='kronecker', got {structure!r}")
    return GaussianPosterior(prior_variance, prior_mean)
