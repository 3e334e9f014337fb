"""The step of a quadratic penalty that does not diverge, whatever the penalty's strength."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from avalanche_hnet.core.common.quadratic import Quadratic
from avalanche_hnet.core.posterior.step_sizes import step_size


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
            pull = _Pull(parameter, *penalty.term(names[parameter]), size.scale)
            if parameter.is_cpu:  # one after the other, in memory that is still in the cache
                _move(pull, size.rate)
            else:  # as few kernels as possible
                together.setdefault(size.rate, []).append(pull)
    for rate, pulls in together.items():
        _move_together(pulls, rate)


class _Pull(NamedTuple):
    parameter: Tensor
    weight: Tensor
    centre: Tensor
    scale: Tensor | None


def _move(pull: _Pull, rate: float) -> None:
    """φ += rate s (c − φ) / (scale + rate s)."""
    parameter, weight, centre, scale = pull
    divisor = (weight * rate).add_(1) if scale is None else scale.add_(weight, alpha=rate)
    parameter.addcdiv_((centre - parameter).mul_(weight), divisor, value=rate)


def _move_together(pulls: list[_Pull], rate: float) -> None:
    """:func:`_move` of many parameters."""
    parameters, weights, centres, scales = zip(*pulls, strict=True)
    divisors = [
        torch.ones_like(parameter) if scale is None else scale
        for parameter, scale in zip(parameters, scales, strict=True)
    ]
    torch._foreach_add_(divisors, weights, alpha=rate)
    distances = torch._foreach_sub(centres, parameters)
    torch._foreach_mul_(distances, weights)
    torch._foreach_addcdiv_(parameters, distances, divisors, value=rate)
