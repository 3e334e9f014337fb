"""Prior-focused continual learning and hypernetworks for Avalanche."""

from avalanche_hnet.core.fisher import diagonal_fisher
from avalanche_hnet.core.fisher_rules import register_fisher_rule
from avalanche_hnet.core.likelihoods import Categorical, Gaussian, Likelihood
from avalanche_hnet.core.posterior import GaussianPosterior
from avalanche_hnet.models.active import HasActiveElements, active_elements
from avalanche_hnet.models.block_heads import BlockMultiHeadClassifier
from avalanche_hnet.plugins.prior_ewc import PriorEWCPlugin

__all__ = [
    "BlockMultiHeadClassifier",
    "Categorical",
    "Gaussian",
    "GaussianPosterior",
    "HasActiveElements",
    "Likelihood",
    "PriorEWCPlugin",
    "active_elements",
    "diagonal_fisher",
    "register_fisher_rule",
]
