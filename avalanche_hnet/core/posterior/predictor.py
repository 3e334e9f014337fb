"""A model with a posterior over its weights, and what it predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import pi
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from avalanche_hnet.core.common.arguments import at_least, generator_or_none, integer, one_of
from avalanche_hnet.core.common.evaluation import usable
from avalanche_hnet.core.common.likelihoods import Bernoulli, Gaussian, Likelihood
from avalanche_hnet.core.common.masking import MASK_VALUE
from avalanche_hnet.core.common.samples import Samples, as_samples
from avalanche_hnet.core.common.substitution import substituted
from avalanche_hnet.core.common.task_labels import may_take_task_labels, takes_task_labels
from avalanche_hnet.core.fisher.one_task import OneTask
from avalanche_hnet.core.posterior.at_mean import at_mean, fitted
from avalanche_hnet.core.posterior.protocol import Posterior

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


@dataclass(frozen=True)
class Predictor:
    """A model with a posterior and a way to predict, all as in :func:`predict`."""

    model: nn.Module
    posterior: Posterior
    method: PredictionMethod = "linearized"
    task_label: int | None = None
    n_samples: int = 30
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        """Refuse what is out of range, and fit the posterior to the model."""
        one_of(PredictionMethod, method=self.method)
        at_least(1, n_samples=self.n_samples)
        generator_or_none(generator=self.generator)
        if not isinstance(self.model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {self.model!r}")
        if not isinstance(self.posterior, Posterior):
            raise TypeError(
                "posterior must be a GaussianPosterior or a KroneckerPosterior, such as "
                f"plugin.posterior of a PriorEWCPlugin, got {self.posterior!r}"
            )
        if self.task_label is not None:
            integer("an integer or None", task_label=self.task_label)
        name = type(self.model).__name__
        if self.task_label is None and takes_task_labels(self.model):
            raise ValueError(
                f"{name} takes task labels; say of which task the inputs are with task_label=…"
            )
        if self.task_label is not None and not may_take_task_labels(self.model):
            raise ValueError(f"task_label is {self.task_label}, but {name} takes none")
        object.__setattr__(self, "posterior", fitted(self.posterior, self.model))

    def probabilities(self, x: Any, likelihood: Likelihood | None = None) -> Tensor:
        """Of classes or, for :class:`Bernoulli`, of each label: of the outputs' shape, in float64.

        The small ones tell tasks apart.
        """
        link = _sigmoid if isinstance(likelihood, Bernoulli) else _softmax
        if self.method == "sample":
            total = sum(link(draw) for draw in self.draws(x))
            return torch.as_tensor(total) / self.n_samples
        if self.method == "map":
            return link(self._at_mean(x))
        outputs, variance = self._linearized(x, _is_not_masked)
        return link(outputs.double() / (1 + pi / 8 * variance.double()).sqrt())

    def regression(self, x: Any, likelihood: Gaussian) -> RegressionPrediction:
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

    def draws(self, x: Any) -> Iterator[Tensor]:
        """Outputs (B, …) under draws of weights, of the network or of its linearisation.

        Each draw is the same for all inputs. Without a generator, draws come from PyTorch's initial
        seed and leave its global state alone.

        Raises:
            ValueError: for ``method="map"``, which has none.
        """
        if self.method == "map":
            raise ValueError("method='map' has no draws; take 'linearized' or 'sample'")
        mean, inputs = self.posterior.mean, usable(as_samples(x))

        def outputs(parameters: dict[str, Tensor]) -> Tensor:
            with substituted(self.model, parameters):
                return self._outputs(inputs)

        constant = _padding(self.model)
        generator = self.generator or torch.Generator().manual_seed(torch.initial_seed())
        for _ in range(self.n_samples):
            # With gradients: without them a model may answer with outputs that it has kept.
            with at_mean(self.model, self.posterior):
                drawn = self.posterior.sample(generator)
                for name in constant.keys() & mean.keys():
                    drawn[name][constant[name]] = mean[name][constant[name]]
                if self.method == "sample":
                    draw = outputs(drawn)
                else:
                    change = {n: drawn[n] - mean[n] for n in mean}
                    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have none
                        draw = sum(jvp(outputs, (mean,), (change,))[:2])
            yield torch.as_tensor(draw).detach()

    def _outputs(self, x: Tensor | Samples) -> Tensor:
        task = OneTask(self.model, {}, self.task_label)
        outputs = task.outputs(x)
        if len(x) == 1 and outputs.shape[:1] != (1,):  # the model has dropped the dimension
            return replace(task, in_pairs=True).outputs(x)
        return outputs

    def _at_mean(self, x: Any) -> Tensor:
        with at_mean(self.model, self.posterior), torch.no_grad():
            return self._outputs(as_samples(x))

    def _linearized(
        self, x: Any, is_needed: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        with at_mean(self.model, self.posterior):
            return self.posterior.output_variance(self.model, x, self.task_label, is_needed)


def _padding(model: nn.Module) -> dict[str, int]:
    """The rows of embeddings that stand for padding, by the name of the weight.

    They are constants: their gradients are zero, so that their precision is only the prior's.
    """
    return {
        f"{prefix}.weight".lstrip("."): module.padding_idx
        for prefix, module in model.named_modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.padding_idx is not None
    }


def _sigmoid(outputs: Tensor) -> Tensor:
    return outputs.double().sigmoid()


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
