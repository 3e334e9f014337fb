"""What a diagonal Gaussian posterior refuses: models and updates that do not fit it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


def check_shapes(mean: Tensors, parameters: Tensors) -> None:
    """Refuse parameters that differ from the posterior's mean by more than new rows.

    Raises:
        ValueError: naming the first of them.
    """
    for name in (name for name in mean if name in parameters):
        old, new = mean[name].shape, parameters[name].shape
        if len(new) != len(old) or new[1:] != old[1:] or new[:1] < old[:1]:
            raise ValueError(
                f"the posterior of {name!r} has shape {tuple(old)}, but the model's "
                f"parameter has {tuple(new)}; a parameter may only grow in dimension 0"
            )


def check_loaded(mean: Tensors, known: Tensors, parameters: Tensors) -> None:
    """Refuse a model that is not the one that a posterior was saved with.

    Args:
        mean: of the posterior that was loaded.
        known: its masks of trained elements.
        parameters: of the model, of fitting shapes.

    Raises:
        ValueError: if a parameter with known elements is missing or not at the mean.
    """
    for name, mask in known.items():
        if name in parameters:
            if not is_at_mean(parameters[name].detach(), mean[name], mask):
                raise ValueError(
                    f"the model's {name!r} is not at the mean of the loaded posterior; load the "
                    "model's own state, saved with the posterior, before training goes on"
                )
        elif mask.any():
            raise ValueError(
                f"the loaded posterior holds {name!r}, which the model does not have; it "
                "belongs to another architecture, or the model's own state (with all its "
                "heads) was not loaded first"
            )


def check_update(parameters: Tensors, fisher: Tensors, active: Tensors) -> None:
    """Refuse an update with masks or a Fisher that do not fit the parameters.

    Raises:
        ValueError: for another name or shape, or an active element's Fisher that is negative or
            not finite.
    """
    for argument, tensors in (("active", active), ("fisher", fisher)):
        for name, tensor in tensors.items():
            if name not in parameters or tensor.shape != parameters[name].shape:
                raise ValueError(
                    f"{argument}[{name!r}] has shape {tuple(tensor.shape)}, which is not that "
                    "of a parameter of this name"
                )
    for name, values in fisher.items():
        chosen = values[active[name]] if name in active else values[:0]
        if not (chosen.isfinite() & (chosen >= 0)).all():
            raise ValueError(
                f"fisher[{name!r}] must be finite and not negative; the posterior is left as it was"
            )


def is_at_mean(parameter: Tensor, mean: Tensor, known: Tensor) -> bool:
    """Whether the parameter, or its first rows if it has grown, lies at the mean where known."""
    rows = parameter[: len(mean)] if mean.dim() else parameter
    mean, known = mean.to(rows), known.to(rows.device)
    return torch.allclose(rows[known], mean[known], rtol=1e-3, atol=1e-6)
