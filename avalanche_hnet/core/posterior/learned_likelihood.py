"""The likelihood that a posterior was learned with, as the one to predict with."""

from __future__ import annotations

from avalanche_hnet.core.common.likelihoods import Gaussian, Likelihood
from avalanche_hnet.core.posterior.protocol import Posterior


def likelihood_to_predict_with(
    likelihood: Likelihood | None, posterior: Posterior | None
) -> Likelihood | None:
    """What is asked for, or else what the posterior was learned with; None if nobody knows.

    Raises:
        ValueError: if the two contradict each other, in their kind or their noise.
    """
    learned = None if posterior is None else posterior.likelihood
    if likelihood is None or learned is None:
        return learned if likelihood is None else likelihood
    is_other = type(likelihood) is not type(learned)
    if isinstance(likelihood, Gaussian) and isinstance(learned, Gaussian):
        is_other = likelihood.noise_std != learned.noise_std
    if is_other:
        raise ValueError(
            f"likelihood is {likelihood!r}, but the posterior was learned with {learned!r}; leave "
            "likelihood out"
        )
    return likelihood
