"""What a network with a posterior over its weights predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from math import pi
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from avalanche_hnet.core.common.arguments import at_least, one_of
from avalanche_hnet.core.common.evaluation import evaluating
from avalanche_hnet.core.common.likelihoods import Categorical, Gaussian, Likelihood
from avalanche_hnet.core.common.masking import MASK_VALUE
from avalanche_hnet.core.common.task_labels import may_take_task_labels, takes_task_labels
from avalanche_hnet.core.fisher.output_variance import output_variance
from avalanche_hnet.core.posterior.gaussian import GaussianPosterior

PredictionMethod = Literal["map", "sample", "linearized"]


class RegressionPrediction(NamedTuple):
    """Mean and variances of real targets, each of the shape (B, …) of the model's outputs."""

    mean: Tensor
    epistemic_variance: Tensor
    """Of f(x), from not knowing the weights; it shrinks with data."""
    noise_variance: Tensor
    """Of the targets around f(x); it stays."""

    @property
    def variance(self) -> Tensor:
        """Of the targets: the sum of both."""
        return self.epistemic_variance + self.noise_variance


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
    (heads of tasks to come) are at the prior.

    Args:
        model: called as ``model(x)``, or as ``model(x, task_label)`` if that is given.
        posterior: of the model's parameters, by the names that they have in it. Parameters that
            it does not know are taken as they are.
        x: B inputs, in dimension 0.
        method: see above.
        likelihood: :class:`Categorical` (the default), or :class:`Gaussian` with its noise.
        task_label: of all inputs; a posterior over several heads becomes that of this task.
        n_samples: for ``"sample"``.
        generator: likewise; by default one with PyTorch's initial seed.

    Where each task has running statistics of its own (:class:`TaskStatistics`), put them in place
    first.

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
    posterior = predictor.posterior
    if isinstance(likelihood, Gaussian):
        return predictor.regression(x, likelihood)
    if not isinstance(likelihood, Categorical):
        raise TypeError(f"likelihood must be Categorical() or Gaussian(noise), got {likelihood!r}")
    dtype = next(iter(posterior.mean.values())).dtype
    return predictor.class_probabilities(x).to(dtype)


@dataclass(frozen=True)
class Predictor:
    """A model with a posterior and a way to predict, all as in :func:`predict`."""

    model: nn.Module
    posterior: GaussianPosterior
    method: PredictionMethod = "linearized"
    task_label: int | None = None
    n_samples: int = 30
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        """Refuse what is out of range, and fit the posterior to the model."""
        one_of(PredictionMethod, method=self.method)
        at_least(1, n_samples=self.n_samples)
        if not isinstance(self.model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {self.model!r}")
        if not isinstance(self.posterior, GaussianPosterior):
            raise TypeError(
                "posterior must be a GaussianPosterior, such as that of a PriorEWCPlugin, "
                f"got {self.posterior!r}"
            )
        if self.task_label is not None and not isinstance(self.task_label, int):
            raise TypeError(f"task_label must be an integer or None, got {self.task_label!r}")
        name = type(self.model).__name__
        if self.task_label is None and takes_task_labels(self.model):
            raise ValueError(
                f"{name} takes task labels; say of which task the inputs are with task_label=…"
            )
        if self.task_label is not None and not may_take_task_labels(self.model):
            raise ValueError(f"task_label is {self.task_label}, but {name} takes none")
        object.__setattr__(self, "posterior", fitted(self.posterior, self.model))

    def class_probabilities(self, x: Tensor) -> Tensor:
        """Probabilities (B, C, …) in float64: the small ones tell tasks apart."""
        if self.method == "sample":
            total = sum(_softmax(draw) for draw in self.draws(x))
            return torch.as_tensor(total) / self.n_samples
        if self.method == "map":
            return _softmax(self._at_mean(x))
        outputs, variance = self._linearized(x, _is_not_masked)
        return _softmax(outputs.double() / (1 + pi / 8 * variance.double()).sqrt())

    def regression(self, x: Tensor, likelihood: Gaussian) -> RegressionPrediction:
        """Mean and variances (B, …)."""
        if self.method == "sample":
            draws = torch.stack([*self.draws(x)])
            mean, variance = draws.mean(0), draws.var(0, correction=0)
        elif self.method == "map":
            mean = self._at_mean(x)
            variance = torch.zeros_like(mean)
        else:
            mean, variance = self._linearized(x)
        return RegressionPrediction(mean, variance, torch.full_like(mean, likelihood.noise_std**2))

    def draws(self, x: Tensor) -> Iterator[Tensor]:
        """Outputs (B, …) under draws of weights, of the network or of its linearisation.

        A draw is one and the same for all inputs. Without a generator, draws are those of PyTorch's
        initial seed, and leave its global state alone.
        """
        if self.method == "map":
            raise ValueError("method='map' has no draws; take 'linearized' or 'sample'")
        mean = self.posterior.mean

        def outputs(parameters: dict[str, Tensor]) -> Tensor:
            return functional_call(self.model, parameters, self._arguments(x))

        constant = _padding(self.model)
        generator = self.generator or torch.Generator().manual_seed(torch.initial_seed())
        for _ in range(self.n_samples):
            drawn = self.posterior.sample(generator)
            for name in constant.keys() & mean.keys():
                drawn[name][constant[name]] = mean[name][constant[name]]
            # With gradients, since without a model may answer with outputs that it has kept.
            with _weights(self.model, self.posterior), torch.enable_grad():
                if self.method == "sample":
                    draw = outputs(drawn)
                else:
                    change = {n: drawn[n] - mean[n] for n in mean}
                    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have none
                        draw = sum(jvp(outputs, (mean,), (change,))[:2])
            yield torch.as_tensor(draw).detach()

    def _arguments(self, x: Tensor) -> tuple[Any, ...]:
        return (x,) if self.task_label is None else (x, self.task_label)

    @torch.no_grad()
    def _at_mean(self, x: Tensor) -> Tensor:
        with _weights(self.model, self.posterior):
            outputs: Tensor = self.model(*self._arguments(x))
        return outputs

    def _linearized(
        self, x: Tensor, is_needed: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        variances = {name: p.reciprocal() for name, p in self.posterior.precision.items()}
        with _weights(self.model, self.posterior):
            return output_variance(self.model, variances, x, self.task_label, is_needed)


def _padding(model: nn.Module) -> dict[str, int]:
    """The rows of embeddings that stand for padding, by the name of the weight.

    They are constants: their gradients are zero, and so their precision is but the prior's.
    """
    return {
        f"{prefix}.weight".lstrip("."): module.padding_idx
        for prefix, module in model.named_modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.padding_idx is not None
    }


def _softmax(outputs: Tensor) -> Tensor:
    if outputs.dim() < 2 or outputs.shape[1] == 1:
        raise ValueError(
            f"outputs of shape {tuple(outputs.shape)} are no logits of two classes or more; for "
            "regression pass likelihood=Gaussian(noise_std)"
        )
    return outputs.double().softmax(1)


def _is_not_masked(outputs: Tensor) -> Tensor:
    """Which output units (U,) are not all at the constant that heads mask classes with."""
    return (outputs.flatten(1) != MASK_VALUE).any(0)


def fitted(posterior: GaussianPosterior, model: nn.Module) -> GaussianPosterior:
    """The posterior, with the prior for what the model has got since (an evaluation adds heads)."""
    if not posterior.mean:
        raise ValueError("posterior is empty: no experience has been trained with it yet")
    parameters = dict(model.named_parameters())
    missing = posterior.mean.keys() - parameters.keys()
    if missing:
        raise ValueError(
            f"posterior holds {min(missing)!r}, which the model does not have; it must be the "
            "posterior of this model"
        )
    new = {n for n, p in parameters.items() if p.requires_grad} - posterior.mean.keys()
    if not new and all(_are_alike(parameters[n], mean) for n, mean in posterior.mean.items()):
        return posterior
    copy = deepcopy(posterior)
    copy.align(parameters)
    return copy


def _are_alike(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)


@contextmanager
def _weights(model: nn.Module, posterior: GaussianPosterior) -> Iterator[None]:
    """Evaluation mode, and the posterior's mean in place of the model's parameters."""
    parameters = dict(model.named_parameters())
    own = {n: (parameters[n].data, parameters[n].requires_grad) for n in posterior.mean}
    fused_attention = torch.backends.mha.get_fastpath_enabled()  # which has no jvp
    with evaluating(model.modules()):
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            for name, mean in posterior.mean.items():
                parameters[name].data = mean
                parameters[name].requires_grad_(True)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused_attention)
            for name, (data, requires_grad) in own.items():
                parameters[name].data = data
                parameters[name].requires_grad_(requires_grad)
