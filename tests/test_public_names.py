"""The public names are what they were: each is a promise to users."""

import importlib

import avalanche.benchmarks
import avalanche.evaluation.metrics
import avalanche.models
import avalanche.training
import avalanche.training.plugins
import pytest

import avalanche_hnet

NAMES = {
    "avalanche_hnet": [
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
        "LayerLayout",
        "KroneckerPosterior",
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
    ],
    "avalanche_hnet.benchmarks": [
        "GaussianMixture2D",
        "PermutedDigits",
        "Regression1D",
        "SplitDigits",
        "with_target_components",
    ],
    "avalanche_hnet.metrics": ["mse_metrics", "task_inference_metrics"],
}


@pytest.mark.parametrize("package", NAMES)
def test_names_are_there(package):
    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(NAMES[package])
    assert all(hasattr(module, name) for name in NAMES[package])


AVALANCHE = [
    avalanche.benchmarks,
    avalanche.evaluation.metrics,
    avalanche.models,
    avalanche.training,
    avalanche.training.plugins,
    avalanche.training.supervised,
    avalanche.training.templates,
]


def starred(module):
    names = {}
    exec(f"from {module.__name__} import *", names)
    return {name for name in names if not name.startswith("__")}


@pytest.mark.parametrize("package", NAMES)
@pytest.mark.parametrize("other", AVALANCHE, ids=lambda module: module.__name__)
def test_a_star_import_hides_no_name_of_avalanche(package, other):
    assert starred(importlib.import_module(package)) & starred(other) == set()


def test_the_regulariser_ewc_is_imported_by_name():
    """Avalanche's strategy has that name, too."""
    assert "EWC" in starred(avalanche.training)
    assert issubclass(avalanche_hnet.EWC, avalanche_hnet.Regularizer)
