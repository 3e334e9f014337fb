"""The step of a quadratic penalty that does not diverge, whatever the penalty's strength."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from avalanche_hnet.core.common.cache_parts import cache_parts
from avalanche_hnet.core.common.quadratic import Quadratic
from avalanche_hnet.core.posterior.step_sizes import StepSize, step_size


@torch.no_grad()
def implicit_step(
    optimizer: Optimizer,
    parameters: Mapping[str, Tensor],
    penalty: Quadratic,
    skip: Container[str] = (),
) -> None:
    """φ ← (φ + η s c) / (1 + η s), after the optimizer's own step on the rest of the loss.

    The proximal step of the penalty ½ Σ s (φ − c)² in the metric of the optimizer (Parikh & Boyd
    2014, *Proximal algorithms*, section 4.2): with η the step size of each element, it rests where
    the gradients of both parts of the loss cancel, as a gradient step does. That diverges where
    η s > 2; this one comes to the centre.

    Args:
        optimizer: has made its step; :func:`~.step_sizes.is_known`.
        parameters: φ by name, changed in place. Those that the optimizer does not have, or has not
            moved yet, or that are frozen, are left alone.
        penalty: s and c by name.
        skip: names that are left alone, too.
    """
    names = {
        parameters[name]: name
        for name in penalty.names
        if name not in skip and parameters[name].requires_grad
    }
    together: dict[float, list[_Pull]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            size = step_size(optimizer, group, parameter) if parameter in names else None
            if size is None:
                continue
            pull = _Pull(parameter, *penalty.term(names[parameter]), size)
            if parameter.is_cpu:
                _move(pull)
            else:  # as few kernels as possible
                together.setdefault(size.rate, []).append(pull)
    for pulls in together.values():
        _move_together(pulls)


class _Pull(NamedTuple):
    parameter: Tensor
    weight: Tensor
    centre: Tensor
    size: StepSize


def _move(pull: _Pull) -> None:
    """φ += rate s (c − φ) / (scale + rate s)."""
    size = pull.size
    tensors = pull[:3] if size.moment is None else (*pull[:3], size.moment)
    for parameter, weight, centre, *moment in cache_parts(tensors):
        if moment:
            divisor = size.scale(*moment).to(weight.dtype).add_(weight, alpha=size.rate)
        else:
            divisor = (weight * size.rate).add_(1)
        parameter.addcdiv_((centre - parameter).mul_(weight), divisor, value=size.rate)


def _move_together(pulls: list[_Pull]) -> None:
    """:func:`_move` of many parameters with one rate."""
    parameters, weights, centres, sizes = zip(*pulls, strict=True)
    rate = sizes[0].rate
    divisors = [
        torch.ones_like(weight) if size.moment is None else size.scale(size.moment).to(weight)
        for weight, size in zip(weights, sizes, strict=True)
    ]
    torch._foreach_add_(divisors, weights, alpha=rate)
    distances = torch._foreach_sub(centres, parameters)
    torch._foreach_mul_(distances, weights)
    torch._foreach_addcdiv_(parameters, distances, divisors, value=rate)
