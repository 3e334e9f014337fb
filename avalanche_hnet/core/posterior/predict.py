"""The predictive distribution of a network with a posterior over its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, overload

import torch
from torch import Tensor, nn

from avalanche_hnet.core.common.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from avalanche_hnet.core.posterior.learned_likelihood import likelihood_to_predict_with
from avalanche_hnet.core.posterior.predictor import (
    PredictionMethod,
    Predictor,
    RegressionPrediction,
)
from avalanche_hnet.core.posterior.protocol import Posterior

__all__ = ["PredictionMethod", "Predictor", "RegressionPrediction", "predict"]


@overload
def predict(
    model: nn.Module,
    posterior: Posterior,
    x: Any,
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
    posterior: Posterior,
    x: Any,
    method: PredictionMethod = ...,
    *,
    likelihood: Categorical | Bernoulli,
    task_label: int | None = ...,
    n_samples: int = ...,
    generator: torch.Generator | None = ...,
) -> Tensor: ...


@overload
def predict(
    model: nn.Module,
    posterior: Posterior,
    x: Any,
    method: PredictionMethod = ...,
    *,
    likelihood: None = ...,
    task_label: int | None = ...,
    n_samples: int = ...,
    generator: torch.Generator | None = ...,
) -> Any: ...  # a tensor or a RegressionPrediction, as the posterior was learned


def predict(
    model: nn.Module,
    posterior: Posterior,
    x: Any,
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
        model: called as ``model(x)``, or as ``model(x, task_label)`` if that is given. What it
            returns may have more in it than the logits (:func:`logits_of`).
        posterior: of the model's parameters, by their names in it: a :class:`GaussianPosterior` or
            a :class:`KroneckerPosterior`. Parameters that it does not know are taken as they are.
        x: B inputs, in dimension 0 of a tensor or of each tensor of a mapping, tuple or dataclass.
        method: see above.
        likelihood: by default the one that the posterior was learned with, or else
            :class:`Categorical`. Others are :class:`Gaussian` with its noise, and
            :class:`Bernoulli`, of which each label's probability is σ(f / √(1 + π v / 8)) under
            ``"linearized"``.
        task_label: of all inputs; a posterior over several heads becomes that of this task.
        n_samples: for ``"sample"``.
        generator: likewise; by default one with PyTorch's initial seed.

    Returns:
        Probabilities of classes, or of each label for :class:`Bernoulli`, of the shape of the
        outputs, (B, C, …); for :class:`Gaussian` a :class:`RegressionPrediction`. No gradients.

    Raises:
        TypeError: if an argument is of another type, or ``likelihood`` none of the three.
        ValueError: for an unknown method or ``n_samples`` below 1; if the posterior is empty or
            that of another model; if the model takes task labels and none is given, or the
            reverse; if it has no head for the label; if classes are asked for and there is one
            output; if ``likelihood`` contradicts the posterior's.
    """
    predictor = Predictor(model, posterior, method, task_label, n_samples, generator)
    if not isinstance(likelihood, (Categorical, Gaussian, Bernoulli, type(None))):
        raise TypeError(
            f"likelihood must be Categorical(), Gaussian(noise) or Bernoulli(), got {likelihood!r}"
        )
    likelihood = likelihood_to_predict_with(likelihood, posterior) or Categorical()
    with _refusing_unknown_task(model, task_label):
        if isinstance(likelihood, Gaussian):
            return predictor.regression(x, likelihood)
        dtype = next(iter(predictor.posterior.mean.values())).dtype
        return predictor.probabilities(x, likelihood).to(dtype)


@contextmanager
def _refusing_unknown_task(model: nn.Module, task_label: int | None) -> Iterator[None]:
    """Say what Avalanche's heads mean by a ``KeyError``."""
    try:
        yield
    except KeyError as error:
        if task_label is None or error.args not in ((task_label,), (str(task_label),)):
            raise
        raise ValueError(
            f"task_label is {task_label}, for which {type(model).__name__} has no head; give the "
            "label of a task that it has met in training or evaluation"
        ) from error
