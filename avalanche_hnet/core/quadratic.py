"""A weighted sum of squares over many tensors, with a cheap gradient."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Quadratic:
    """½ Σ_i w_i (φ_i − c_i)² as a function of parameters φ.

    Args:
        weights: w by parameter name; parameters without weights do not take part.
        centres: c by parameter name.
    """

    def __init__(self, weights: Mapping[str, Tensor], centres: Mapping[str, Tensor]) -> None:
        self._terms = {name: (weight, centres[name]) for name, weight in weights.items()}

    def __call__(self, parameters: Mapping[str, Tensor], skip: Container[str] = ()) -> Tensor:
        """The value at ``parameters``, a scalar that can be differentiated once.

        Args:
            parameters: φ by name, of which all that have weights are needed.
            skip: names that are left out of the sum.
        """
        names = [name for name in self._terms if name not in skip]
        if not names:
            return torch.zeros(())
        weights, centres = zip(*(self._terms[name] for name in names), strict=True)
        value: Tensor = _HalfSumOfSquares.apply(
            weights, centres, *(parameters[name] for name in names)
        )
        return value


class _HalfSumOfSquares(torch.autograd.Function):
    """The gradient w (φ − c) comes out of the value's computation, so it is kept."""

    @staticmethod
    def forward(
        ctx: Any, weights: tuple[Tensor, ...], centres: tuple[Tensor, ...], *parameters: Tensor
    ) -> Tensor:
        deviations = torch._foreach_sub(parameters, centres)
        gradients = torch._foreach_mul(deviations, weights)
        ctx.gradients = gradients
        products = [
            g.flatten().dot(d.flatten()) for g, d in zip(gradients, deviations, strict=True)
        ]
        return torch.stack(products).sum() / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        return None, None, *torch._foreach_mul(ctx.gradients, grad_output)
