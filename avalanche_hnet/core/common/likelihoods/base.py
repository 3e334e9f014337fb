"""What every likelihood offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor


class Likelihood(ABC):
    """The distribution p(y | f(x)) of targets y given a model's outputs f(x).

    Its negative logarithm is the loss of a sample, and its expectation over y makes the Fisher
    (Martens 2020, *New insights and perspectives on the natural gradient method*, arXiv 1412.1193,
    section 5).

    In every method the first dimension of ``outputs`` and ``targets`` counts the B samples.
    """

    @abstractmethod
    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood of each sample up to a constant, in nats, shape (B,)."""

    def nll_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Gradient of each sample's NLL by its outputs, of the shape of ``outputs``."""
        with torch.enable_grad():
            outputs = outputs.detach().requires_grad_()
            return torch.autograd.grad(self.nll(outputs, targets).sum(), outputs)[0]

    @abstractmethod
    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Targets drawn from the model, of the shape that :meth:`nll` takes."""

    @abstractmethod
    def fisher_factors(self, outputs: Tensor) -> Iterator[Tensor]:
        """Tensors c_k of the shape of ``outputs`` with Σ_k c_k c_kᵀ = E_y[∇_f NLL ∇_f NLLᵀ]."""

    @abstractmethod
    def criterion_scale(self, criterion: object, outputs: Tensor, targets: Tensor) -> float:
        """How many times the mean NLL of this batch ``criterion(outputs, targets)`` is."""

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Refuse targets that do not fit the outputs.

        Raises:
            ValueError: naming what would fit.
        """
        return  # a likelihood of a user's own need not check anything

    def counted(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Mask, of the outputs' dimensions, of what counts at all; None: everything does.

        Positions that do not count have no loss, whichever label is drawn for them.
        """
        return None


def per_sample(values: Tensor) -> Tensor:
    """Sums over all dimensions but the first, shape (B,)."""
    return values.flatten(1).sum(1) if values.dim() > 1 else values


def check_same_shape(outputs: Tensor, targets: Tensor, hint: str) -> None:
    """Refuse targets of another shape than the outputs, which PyTorch would broadcast."""
    if targets.shape != outputs.shape:
        if targets.is_floating_point() and (*targets.shape, 1) == outputs.shape:
            hint = " (let the data set return them as targets.unsqueeze(-1))"
        raise ValueError(
            f"targets have the shape {tuple(targets.shape)}, but the outputs "
            f"{tuple(outputs.shape)}; they must be the same{hint}"
        )
