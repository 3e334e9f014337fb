"""What a model's outputs say about its targets: categorical and Gaussian likelihoods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_hnet.core.common.arguments import generator_or_none, number


class Likelihood(ABC):
    """The distribution p(y | f(x)) of targets y given a model's outputs f(x).

    In every method the first dimension of ``outputs`` and ``targets`` counts the B samples.
    """

    @abstractmethod
    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood of each sample up to a constant, in nats, shape (B,)."""

    @abstractmethod
    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Targets drawn from the model, of the shape that :meth:`nll` takes."""

    @abstractmethod
    def fisher_factors(self, outputs: Tensor) -> Iterator[Tensor]:
        """Tensors c_k of the shape of ``outputs`` with Σ_k c_k c_kᵀ = E_y[∇_f NLL ∇_f NLLᵀ]."""

    @abstractmethod
    def criterion_scale(self, criterion: object, outputs: Tensor) -> float:
        """How many times the mean NLL ``criterion(outputs, targets)`` is."""


class Categorical(Likelihood):
    """Class labels with probabilities softmax(f(x)) over dimension 1.

    ``outputs`` are logits (B, C) or (B, C, d₁, …); ``targets`` are class indices (B,) or
    (B, d₁, …), or class probabilities of the shape of ``outputs``. The NLL of a sample is the
    sum over its positions d₁, ….
    """

    def __repr__(self) -> str:
        return "Categorical()"

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if not targets.is_floating_point():
            n_classes = outputs.shape[1]
            if targets.min() < 0 or targets.max() >= n_classes:
                raise ValueError(
                    f"targets must be class indices from 0 to {n_classes - 1}, one per output "
                    f"unit; got {int(targets.min())} to {int(targets.max())}"
                )
        return _per_sample(F.cross_entropy(outputs, targets, reduction="none"))

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        generator_or_none(generator=generator)
        probabilities = outputs.movedim(1, -1).softmax(-1)
        device = outputs.device if generator is None else generator.device
        drawn = torch.multinomial(
            probabilities.flatten(0, -2).to(device), 1, generator=generator
        ).to(outputs.device)
        return drawn.view(probabilities.shape[:-1])

    def fisher_factors(self, outputs: Tensor) -> Iterator[Tensor]:
        probabilities = outputs.flatten(2).softmax(1) if outputs.dim() > 2 else outputs.softmax(1)
        by_position = probabilities.reshape(*outputs.shape[:2], -1)
        for position in range(by_position.shape[2]):
            p = by_position[:, :, position]
            for label in range(p.shape[1]):
                if not p[:, label].any():  # a masked unit: no sample can have this label
                    continue
                residual = p.clone()
                residual[:, label] -= 1
                factor = torch.zeros_like(by_position)
                factor[:, :, position] = p[:, label, None].sqrt() * residual
                yield factor.view(outputs.shape)

    def criterion_scale(self, criterion: object, outputs: Tensor) -> float:
        if not isinstance(criterion, nn.CrossEntropyLoss):
            return 1.0
        if criterion.reduction == "sum":
            return float(len(outputs))
        return outputs.shape[1] / outputs[0].numel()


class Gaussian(Likelihood):
    """Real targets with mean f(x) and independent noise of standard deviation ``noise_std``.

    ``outputs`` and ``targets`` have one shape, (B, …); the NLL is ‖y − f(x)‖² / (2 noise_std²).

    Raises:
        TypeError, ValueError: if ``noise_std`` is not a positive number.
    """

    def __init__(self, noise_std: float = 1.0) -> None:
        number("a positive number", noise_std=noise_std)
        if not noise_std > 0:
            raise ValueError(f"noise_std must be positive, got {noise_std}")
        self.noise_std = float(noise_std)

    def __repr__(self) -> str:
        return f"Gaussian(noise_std={self.noise_std})"

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.shape != targets.shape:
            raise ValueError(
                f"targets must have the outputs' shape {tuple(outputs.shape)}, "
                f"got {tuple(targets.shape)}"
            )
        return _per_sample((targets - outputs).square()) / (2 * self.noise_std**2)

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        generator_or_none(generator=generator)
        device = outputs.device if generator is None else generator.device
        noise = torch.randn(outputs.shape, generator=generator, device=device, dtype=outputs.dtype)
        return outputs + self.noise_std * noise.to(outputs.device)

    def fisher_factors(self, outputs: Tensor) -> Iterator[Tensor]:
        for unit in range(outputs[0].numel()):
            factor = torch.zeros_like(outputs)
            factor.view(len(outputs), -1)[:, unit] = 1 / self.noise_std
            yield factor

    def criterion_scale(self, criterion: object, outputs: Tensor) -> float:
        if not isinstance(criterion, nn.MSELoss):
            return 1.0
        n_terms = 1 / len(outputs) if criterion.reduction == "sum" else outputs[0].numel()
        return 2 * self.noise_std**2 / n_terms


def resolve_likelihood(likelihood: Likelihood | None, criterion: object) -> Likelihood:
    """The likelihood of which ``criterion`` is (a multiple of) the mean negative logarithm.

    Args:
        likelihood: what the user says it is, or None to read it off the criterion.
        criterion: the training loss.

    Raises:
        ValueError: if the two contradict each other, or the criterion alone does not tell,
            naming what would be accepted.
    """
    if isinstance(criterion, (nn.CrossEntropyLoss, nn.MSELoss)) and criterion.reduction == "none":
        raise ValueError("criterion must have reduction='mean' or 'sum', got 'none'")
    if likelihood is None:
        return _likelihood_from(criterion)
    other = {Categorical: nn.MSELoss, Gaussian: nn.CrossEntropyLoss}.get(type(likelihood))
    if other is not None and isinstance(criterion, other):
        raise ValueError(f"likelihood {likelihood!r} does not go with criterion {criterion!r}")
    return likelihood


def _likelihood_from(criterion: object) -> Likelihood:
    supported = (
        "pass likelihood=Categorical() or likelihood=Gaussian(noise_std) to say which "
        "likelihood the criterion stands for"
    )
    if not isinstance(criterion, (nn.CrossEntropyLoss, nn.MSELoss)):
        raise ValueError(
            f"criterion must be CrossEntropyLoss or MSELoss to know the likelihood from it, "
            f"got {criterion!r}; {supported}"
        )
    if isinstance(criterion, nn.MSELoss):
        return Gaussian()
    defaults = {"weight": None, "label_smoothing": 0.0, "ignore_index": -100}
    for option, default in defaults.items():
        value = getattr(criterion, option)
        if value is not default and value != default:
            raise ValueError(
                f"CrossEntropyLoss({option}={value}) is not the negative logarithm of a "
                f"likelihood over all samples; leave {option} at {default}, or {supported}"
            )
    return Categorical()


def _per_sample(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1) if values.dim() > 1 else values
