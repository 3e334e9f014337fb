"""Predictions under each of several tasks, for task inference to choose from.

Where tasks have running statistics of their own, these are in place while the model predicts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from torch import Tensor, nn

from avalanche_hnet.core.common.likelihoods import Gaussian
from avalanche_hnet.core.posterior.at_mean import fitted
from avalanche_hnet.core.posterior.predictor import Predictor, RegressionPrediction
from avalanche_hnet.core.posterior.task_criteria import disagreement
from avalanche_hnet.models.hyper_model import HyperModel
from avalanche_hnet.models.inference_options import InferenceOptions

Prediction = TypeVar("Prediction")


def class_probabilities(
    model: nn.Module, options: InferenceOptions, x: Tensor, tasks: Sequence[int]
) -> list[Tensor]:
    """Class probabilities (B, C) of inputs ``x`` (B, …) under each task, in float64."""
    if options.posterior is not None:
        return _with_posterior(model, options, tasks, lambda p: p.probabilities(x))
    if isinstance(model, HyperModel):
        return [*model.forward_tasks(x, tasks).double().softmax(2)]
    probabilities = []
    for task in tasks:
        with _statistics(model, options, task):
            probabilities.append(model(x, task).double().softmax(1))
    return probabilities


def disagreements(
    model: nn.Module, options: InferenceOptions, x: Tensor, tasks: Sequence[int]
) -> list[Tensor]:
    """How much networks drawn from the posterior disagree (B,), under each task."""

    def of_draws(predictor: Predictor) -> Tensor:
        return disagreement(draw.double().softmax(1) for draw in predictor.draws(x))

    return _with_posterior(model, options, tasks, of_draws)


def regressions(
    model: nn.Module,
    options: InferenceOptions,
    x: Tensor,
    tasks: Sequence[int],
    likelihood: Gaussian,
) -> list[RegressionPrediction]:
    """Means and variances (B, …) under each task."""
    return _with_posterior(model, options, tasks, lambda p: p.regression(x, likelihood))


def _with_posterior(
    model: nn.Module,
    options: InferenceOptions,
    tasks: Sequence[int],
    predict: Callable[[Predictor], Prediction],
) -> list[Prediction]:
    assert options.posterior is not None  # InferenceOptions refuses what would need one
    posterior = fitted(options.posterior, model)
    predictions = []
    for task in tasks:
        predictor = Predictor(
            model, posterior, options.method, task, options.n_samples, options.generator
        )
        with _statistics(model, options, task):
            predictions.append(predict(predictor))
    return predictions


def _statistics(
    model: nn.Module, options: InferenceOptions, task: int
) -> AbstractContextManager[None]:
    if options.statistics is None:
        return nullcontext()
    return options.statistics.using(model, task)
