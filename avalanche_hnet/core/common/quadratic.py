"""A weighted sum of squares over many tensors, with a cheap gradient."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from avalanche_hnet.core.common.cache_parts import cache_parts

Tensors = tuple[Tensor, ...] | list[Tensor]


class Quadratic:
    """½ Σ_i w_i (φ_i − c_i)² as a function of parameters φ.

    Args:
        weights: w ≥ 0 by parameter name; parameters without weights do not take part.
        centres: c by parameter name.
    """

    def __init__(self, weights: Mapping[str, Tensor], centres: Mapping[str, Tensor]) -> None:
        self._terms = {name: (weight, centres[name]) for name, weight in weights.items()}

    @property
    def names(self) -> list[str]:
        """Of the parameters that take part."""
        return [*self._terms]

    def term(self, name: str) -> tuple[Tensor, Tensor]:
        """The weights and the centres of a parameter."""
        return self._terms[name]

    def __call__(self, parameters: Mapping[str, Tensor], skip: Container[str] = ()) -> Tensor:
        """The value at ``parameters``, a scalar that can be differentiated once.

        Parameters may be of another type than weights and centres: the value has the wider of
        the two, gradients have that of their parameter.

        Args:
            parameters: φ by name, of which all that have weights are needed.
            skip: names that are left out of the sum.
        """
        names = [name for name in self._terms if name not in skip]
        if not names:
            return torch.zeros(())
        chosen = [parameters[name] for name in names]
        weights, centres = zip(*(self._terms[name] for name in names), strict=True)
        if not torch.is_grad_enabled() and chosen[0].is_cpu:
            return _value_alone(weights, centres, chosen)
        value: Tensor = _HalfSumOfSquares.apply(weights, centres, *chosen)
        return value


class _HalfSumOfSquares(torch.autograd.Function):
    """The gradient w (φ − c) comes out of the value's computation, so it is kept."""

    @staticmethod
    def forward(
        ctx: Any, weights: tuple[Tensor, ...], centres: tuple[Tensor, ...], *parameters: Tensor
    ) -> Tensor:
        deviations = torch._foreach_sub(parameters, centres)
        gradients = torch._foreach_mul(deviations, weights)
        products = _dot_products(gradients, deviations)
        ctx.constants, ctx.gradients = (weights, centres), gradients
        ctx.save_for_backward(*parameters)
        return products.sum() / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        parameters = ctx.saved_tensors  # or an error, if the graph is gone or they have changed
        # Given away, so that autograd can add other gradients in place.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            weights, centres = ctx.constants
            gradients = torch._foreach_mul(torch._foreach_sub(parameters, centres), weights)
        gradients = [g.to(p.dtype) for g, p in zip(gradients, parameters, strict=True)]
        # Most often it is 1, and to multiply all gradients by it is a pass over them. On a GPU,
        # where that is cheap, to look at it would not be.
        if not (grad_output.is_cpu and grad_output == 1):
            torch._foreach_mul_(gradients, grad_output)
        return None, None, *gradients


def _value_alone(weights: Tensors, centres: Tensors, parameters: Tensors) -> Tensor:
    """Part by part, so that deviations need no memory but the cache."""
    products = []
    for term in zip(weights, centres, parameters, strict=True):
        for weight, centre, parameter in cache_parts(term):
            deviation = parameter - centre
            products.append((deviation * weight).flatten().dot(deviation.flatten()))
    return torch.stack(products).sum() / 2


def _dot_products(gradients: Tensors, deviations: Tensors) -> Tensor:
    """Σ w d² of each tensor; d is overwritten."""
    if gradients[0].is_cpu:  # one pass less over the numbers
        pairs = zip(gradients, deviations, strict=True)
        return torch.stack([g.flatten().dot(d.flatten()) for g, d in pairs])
    torch._foreach_mul_(deviations, gradients)  # as few kernels as possible
    return torch.stack(torch._foreach_norm(deviations, 1))
