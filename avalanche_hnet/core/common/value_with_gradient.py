"""Scalars whose gradients come out of their values' computation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ValueAndGradients = Callable[[tuple[Tensor, ...]], tuple[Tensor, list[Tensor]]]


def value_with_gradient(compute: ValueAndGradients, parameters: Sequence[Tensor]) -> Tensor:
    """The value of a function, a scalar that can be differentiated once by the parameters.

    Args:
        compute: from the parameters to the value and new tensors with its gradients, of any type.
        parameters: may be of several types; gradients get that of their parameter.
    """
    value: Tensor = _ValueWithGradient.apply(compute, *parameters)
    return value


class _ValueWithGradient(torch.autograd.Function):
    """The gradients are kept, for the one backward pass that there most often is."""

    @staticmethod
    def forward(ctx: Any, compute: ValueAndGradients, *parameters: Tensor) -> Tensor:
        value, ctx.gradients = compute(parameters)
        ctx.compute = compute
        ctx.save_for_backward(*parameters)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        parameters = ctx.saved_tensors  # or an error, if the graph is gone or they have changed
        # Given away, so that autograd can add other gradients in place.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            _, gradients = ctx.compute(parameters)
        gradients = [g.to(p.dtype) for g, p in zip(gradients, parameters, strict=True)]
        # Most often it is 1, and to multiply all gradients by it is a pass over them. On a GPU,
        # where that is cheap, to look at it would not be.
        if not (grad_output.is_cpu and grad_output == 1):
            torch._foreach_mul_(gradients, grad_output)
        return None, *gradients
