"""The predictive distribution of a network with a posterior over its weights."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor, nn

from avalanche_hnet.core.common.likelihoods import Categorical, Gaussian, Likelihood
from avalanche_hnet.core.posterior.gaussian import GaussianPosterior
from avalanche_hnet.core.posterior.predictor import (
    PredictionMethod,
    Predictor,
    RegressionPrediction,
)

__all__ = ["PredictionMethod", "Predictor", "RegressionPrediction", "predict"]


@overload
def predict(
    model: nn.Module,
    posterior: GaussianPosterior,
    x: Tensor,
    method: PredictionMethod = ...,
    *,
    likelihood: Gaussian,
    task_label: int | None = ...,
    n_samples: int = ...,
    generator: torch.Generator | None = ...,
) -> RegressionPrediction: ...


@overload
def predict(
    model: nn.Module,
    posterior: GaussianPosterior,
    x: Tensor,
    method: PredictionMethod = ...,
    *,
    likelihood: Categorical = ...,
    task_label: int | None = ...,
    n_samples: int = ...,
    generator: torch.Generator | None = ...,
) -> Tensor: ...


def predict(
    model: nn.Module,
    posterior: GaussianPosterior,
    x: Tensor,
    method: PredictionMethod = "linearized",
    *,
    likelihood: Likelihood | None = None,
    task_label: int | None = None,
    n_samples: int = 30,
    generator: torch.Generator | None = None,
) -> Tensor | RegressionPrediction:
    """The predictive distribution p(y | x) = ∫ p(y | f(x, φ)) N(φ; φ*, Λ⁻¹) dφ.

    - ``"linearized"``: with the outputs linear in the weights around φ*, f(x, φ*) + J (φ − φ*),
      which then are Gaussian with variances v = diag(J Λ⁻¹ Jᵀ). Regression is exact, and class
      probabilities are softmax(f / √(1 + π v / 8)), the multi-class probit approximation, whose
      most probable class need not be that of f.
      Immer et al. 2021, *Improving predictions of Bayesian neural nets via local linearization*
      (arXiv 2008.08400). Costs a backward pass per output unit.
    - ``"sample"``: the average over ``n_samples`` networks with weights drawn from the posterior.
      Under a wide prior that is no network at all: weights that the data say little about are
      drawn from the prior, and their effects add up.
    - ``"map"``: that of φ* alone; its epistemic variance is zero.

    The model runs in evaluation mode at the posterior's mean. Weights that have never been trained
    (heads of tasks to come) are at the prior. Where each task has running statistics of its own
    (:class:`TaskStatistics`), put them in place first.

    Args:
        model: called as ``model(x)``, or as ``model(x, task_label)`` if that is given.
        posterior: of the model's parameters, by their names in it. Parameters that it does not
            know are taken as they are.
        x: B inputs, in dimension 0.
        method: see above.
        likelihood: :class:`Categorical` (the default), or :class:`Gaussian` with its noise.
        task_label: of all inputs; a posterior over several heads becomes that of this task.
        n_samples: for ``"sample"``.
        generator: likewise; by default one with PyTorch's initial seed.

    Returns:
        Class probabilities of the shape of the outputs, (B, C, …), or a
        :class:`RegressionPrediction`. No gradients.

    Raises:
        TypeError: if an argument is of another type, or ``likelihood`` neither of the two.
        ValueError: for an unknown method or ``n_samples`` below 1; if the posterior is empty or
            that of another model; if the model takes task labels and none is given, or the
            reverse; if classes are asked for and there is one output.
    """
    likelihood = Categorical() if likelihood is None else likelihood
    predictor = Predictor(model, posterior, method, task_label, n_samples, generator)
    if isinstance(likelihood, Gaussian):
        return predictor.regression(x, likelihood)
    if not isinstance(likelihood, Categorical):
        raise TypeError(f"likelihood must be Categorical() or Gaussian(noise), got {likelihood!r}")
    dtype = next(iter(predictor.posterior.mean.values())).dtype
    return predictor.class_probabilities(x).to(dtype)
