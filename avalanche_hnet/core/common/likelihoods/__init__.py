"""What a model's outputs say about its targets: one likelihood a file.

``criteria`` reads the likelihood off a criterion, ``first_batch`` refuses what does not fit it.
"""

from avalanche_hnet.core.common.likelihoods.base import Likelihood
from avalanche_hnet.core.common.likelihoods.bernoulli import Bernoulli
from avalanche_hnet.core.common.likelihoods.categorical import Categorical
from avalanche_hnet.core.common.likelihoods.criteria import likelihood_of, resolve_likelihood
from avalanche_hnet.core.common.likelihoods.first_batch import check_first_batch
from avalanche_hnet.core.common.likelihoods.gaussian import Gaussian
from avalanche_hnet.core.common.likelihoods.state import likelihood_from_state, likelihood_state

__all__ = [
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "Likelihood",
    "check_first_batch",
    "likelihood_from_state",
    "likelihood_of",
    "likelihood_state",
    "resolve_likelihood",
]
