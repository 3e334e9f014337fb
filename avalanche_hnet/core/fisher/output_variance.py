"""Variances of a network's outputs, with the outputs linear in its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_hnet.core.common.evaluation import differentiable, usable
from avalanche_hnet.core.common.samples import Samples, as_samples
from avalanche_hnet.core.fisher.one_task import OneTask
from avalanche_hnet.core.fisher.squared_gradients import SquaredGradients

# At most so many per-sample gradients are held at a time (128 MiB of float32).
_BUDGET = 2**25


def output_variance(
    model: nn.Module,
    variances: Mapping[str, Tensor],
    x: Any,
    task_label: int | None = None,
    is_needed: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs f(x) and the diagonal of J Σ Jᵀ, J their Jacobian by weights of variances Σ.

    The Jacobian is not formed: a sum of squared gradients that is weighted with Σ costs one
    backward pass per output unit, by the rules of the Fisher (:class:`SquaredGradients`).

    Args:
        model: in evaluation mode; called with ``(x)``, or ``(x, task_label)`` if that is given.
        variances: Σ by parameter name, frozen or not; other parameters are certain.
        x: B inputs, in dimension 0 of a tensor or of each tensor of a structure.
        task_label: of all inputs.
        is_needed: from the outputs to a mask of output units, flattened (U,); the variance of the
            others is left at zero. All by default.

    Returns:
        Outputs and variances, both (B, …), without gradients.
    """
    parameters = {n: p for n, p in model.named_parameters() if n in variances}
    x = as_samples(x)
    if len(x) == 0 or not parameters:
        with torch.no_grad():
            outputs = OneTask(model, parameters, task_label, in_pairs=True).outputs(x)
        return outputs, torch.zeros_like(outputs)
    with differentiable(parameters.values()):
        x, variances = usable(x), {n: usable(v) for n, v in variances.items()}
        method = SquaredGradients(model, parameters, x, task_label)
        step = samples_at_once(method, parameters, len(x))
        parts = [_of_rows(method, rows, variances, is_needed) for rows in x.split(step)]
    outputs, variance = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return outputs, variance


def samples_at_once(
    method: SquaredGradients, parameters: Mapping[str, Tensor], n_samples: int
) -> int:
    """How many of the samples to take at a time, so that the memory stays bounded.

    Layers other than plain linear ones form the gradients of samples, and keep them.
    """
    n_weights = sum(p.numel() for p in parameters.values())
    return n_samples if method.choice.is_plain else max(1, _BUDGET // max(1, n_weights))


def unit_factors(
    outputs: Tensor, is_needed: Callable[[Tensor], Tensor] | None
) -> Iterator[tuple[int, Tensor]]:
    """The needed output units, by number, each with factors (B, …) that are one there alone."""
    n_units = outputs[0].numel()
    needed = range(n_units) if is_needed is None else is_needed(outputs).nonzero()[:, 0].tolist()
    for unit in needed:
        factor = torch.zeros_like(outputs)
        factor.view(len(outputs), -1)[:, unit] = 1
        yield unit, factor


def _of_rows(
    method: SquaredGradients,
    x: Tensor | Samples,
    variances: Mapping[str, Tensor],
    is_needed: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor, Tensor]:
    outputs, weighted_sums = method.forward_weighted(x, variances)
    variance = torch.zeros_like(outputs)
    for unit, factor in unit_factors(outputs, is_needed):
        variance.view(len(outputs), -1)[:, unit] = weighted_sums(factor)
    return outputs, variance
