"""The public names are what they were: each is a promise to users."""

import importlib

import pytest

NAMES = {
    "avalanche_hnet": [
        "EWC",
        "Bernoulli",
        "BlockMultiHeadClassifier",
        "Categorical",
        "ChunkedHyperNetwork",
        "FixedTarget",
        "Gaussian",
        "GaussianPosterior",
        "HasActiveElements",
        "HyperModel",
        "HyperNetwork",
        "HypernetTemplate",
        "InMemoryPlugin",
        "Jacobian",
        "KroneckerFactor",
        "KroneckerFisher",
        "LayerLayout",
        "KroneckerPosterior",
        "Likelihood",
        "OutputRegularizer",
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
