"""Prior-focused continual learning and hypernetworks for Avalanche."""

from avalanche_hnet.core.common.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from avalanche_hnet.core.common.logits import logits_of
from avalanche_hnet.core.common.task_statistics import TaskStatistics
from avalanche_hnet.core.fisher.diagonal import diagonal_fisher
from avalanche_hnet.core.fisher.kronecker import kronecker_factors
from avalanche_hnet.core.fisher.kronecker_layer import (
    KroneckerFactor,
    KroneckerFisher,
    LayerLayout,
)
from avalanche_hnet.core.fisher.kronecker_rules import register_kronecker_rule
from avalanche_hnet.core.fisher.layer_rules import register_fisher_rule
from avalanche_hnet.core.hypernetworks.chunked import ChunkedHyperNetwork
from avalanche_hnet.core.hypernetworks.network import HyperNetwork
from avalanche_hnet.core.posterior.gaussian import GaussianPosterior
from avalanche_hnet.core.posterior.kronecker import KroneckerPosterior
from avalanche_hnet.core.posterior.predict import RegressionPrediction, predict
from avalanche_hnet.core.posterior.protocol import Posterior

# Not in __all__: a star import would hide the strategy EWC of avalanche.training.
from avalanche_hnet.core.regularizers import EWC as EWC
from avalanche_hnet.core.regularizers import (
    FixedTarget,
    Jacobian,
    OutputRegularizer,
    Regularizer,
    ValuePreserving,
)
from avalanche_hnet.core.regularizers.lookahead import fresh_optimizer, optimizer_step, sgd_step
from avalanche_hnet.models.active import HasActiveElements, active_elements
from avalanche_hnet.models.block_heads import BlockMultiHeadClassifier
from avalanche_hnet.models.hyper_model import HyperModel
from avalanche_hnet.models.task_inference import TaskInference
from avalanche_hnet.plugins.checkpoint import CheckpointPlugin
from avalanche_hnet.plugins.checkpointing.kinds import register_checkpoint_state
from avalanche_hnet.plugins.clip_gradient import ClipGradientPlugin
from avalanche_hnet.plugins.in_memory import InMemoryPlugin
from avalanche_hnet.plugins.isolated_evaluation import IsolatedEvaluationPlugin
from avalanche_hnet.plugins.prior_ewc import PriorEWCPlugin
from avalanche_hnet.plugins.task_inference import TaskInferencePlugin
from avalanche_hnet.plugins.task_statistics import TaskStatisticsPlugin
from avalanche_hnet.strategies.hypernet import HypernetTemplate
from avalanche_hnet.strategies.hypernet_in_one_call import Hypernet
from avalanche_hnet.strategies.prior_ewc import PriorEWC

__all__ = [
    "Bernoulli",
    "BlockMultiHeadClassifier",
    "Categorical",
    "CheckpointPlugin",
    "ChunkedHyperNetwork",
    "ClipGradientPlugin",
    "FixedTarget",
    "Gaussian",
    "GaussianPosterior",
    "HasActiveElements",
    "HyperModel",
    "HyperNetwork",
    "Hypernet",
    "HypernetTemplate",
    "InMemoryPlugin",
    "IsolatedEvaluationPlugin",
    "Jacobian",
    "KroneckerFactor",
    "KroneckerFisher",
    "KroneckerPosterior",
    "LayerLayout",
    "Likelihood",
    "OutputRegularizer",
    "Posterior",
    "PriorEWC",
    "PriorEWCPlugin",
    "RegressionPrediction",
    "Regularizer",
    "TaskInference",
    "TaskInferencePlugin",
    "TaskStatistics",
    "TaskStatisticsPlugin",
    "ValuePreserving",
    "active_elements",
    "diagonal_fisher",
    "fresh_optimizer",
    "kronecker_factors",
    "logits_of",
    "optimizer_step",
    "predict",
    "register_checkpoint_state",
    "register_fisher_rule",
    "register_kronecker_rule",
    "sgd_step",
]
