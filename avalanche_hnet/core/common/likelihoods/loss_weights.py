"""Weights of classes or outputs in a loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def checked_weights(name: str, values: Tensor | Sequence[float] | None) -> Tensor | None:
    """Weights as a real tensor of their own.

    Raises:
        TypeError, ValueError: if they are not numbers, or negative or not finite.
    """
    if values is None:
        return None
    try:
        weights = torch.as_tensor(values).detach().clone()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a tensor of weights or None, got {values!r}") from None
    if not weights.is_floating_point():
        weights = weights.to(torch.get_default_dtype())
    if not (weights.isfinite() & (weights >= 0)).all():
        raise ValueError(f"{name} must be finite and not negative, got {weights.tolist()}")
    return weights


def shown(**values: object) -> str:
    """Arguments of a constructor for its ``repr``, without those that are None."""
    parts = []
    for name, value in values.items():
        if value is not None:
            parts.append(f"{name}={value.tolist() if isinstance(value, Tensor) else value}")
    return ", ".join(parts)
