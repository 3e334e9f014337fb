"""What the methods have in common that square the gradients of single samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

# Tensors of the parameters' shapes, by name.
ByName = dict[str, Tensor]
_HALF = (torch.float16, torch.bfloat16)


class Method(Protocol):
    """A way to get squared per-sample gradients of some parameters, for the samples of a batch.

    J_n is the Jacobian of the outputs of sample n by these parameters, c_n the factor of its
    outputs: (B, …), as the outputs.
    """

    def squares(self, factor: Tensor) -> ByName:
        """Σ_n (J_nᵀ c_n)², by name; parameters without gradients may be left out."""

    def add_weighted(self, total: Tensor, weights: Mapping[str, Tensor], factor: Tensor) -> None:
        """Add Σ_i w_i (J_nᵀ c_n)_i² to ``total`` (B,), for each sample n."""


class PerSample(ABC):
    """A :class:`Method` that forms the gradients of single samples."""

    @abstractmethod
    def gradients(self, factor: Tensor) -> Iterator[tuple[slice, ByName]]:
        """The gradients (b, …) of some samples at a time, and which samples these are."""

    def squares(self, factor: Tensor) -> ByName:
        """See :class:`Method`."""
        total: ByName = {}
        for _, gradients in self.gradients(factor):
            for name, gradient in gradients.items():
                square = at_least_single(gradient).square()
                square = square[0] if len(square) == 1 else square.sum(0)
                total[name] = total.get(name, 0) + square
        return total

    def add_weighted(self, total: Tensor, weights: Mapping[str, Tensor], factor: Tensor) -> None:
        """See :class:`Method`."""
        for rows, gradients in self.gradients(factor):
            for name, gradient in gradients.items():
                weighted = weights[name] * at_least_single(gradient).square()
                total[rows] += weighted.flatten(1).sum(1) if weighted.dim() > 1 else weighted


def at_least_single(values: Tensor) -> Tensor:
    """The values in float32 if they are in half precision, whose squares would vanish."""
    return values.float() if values.dtype in _HALF else values
