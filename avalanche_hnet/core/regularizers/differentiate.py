"""Gradients of a penalty, some or all of whose parameters may be frozen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gradients_or_none(value: Tensor, leaves: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradient of a scalar by each leaf; None where it does not depend on it."""
    if not leaves or not value.requires_grad:
        return [None] * len(leaves)
    return [*torch.autograd.grad(value, leaves, allow_unused=True)]
