"""Layers whose inputs are all pairs of two sets of vectors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Concatenate(nn.Module):
    """[a, b] for all pairs of vectors a (…, A) and b (…, B), which are broadcast."""

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        """All pairs (…, A + B)."""
        shape = torch.broadcast_shapes(pair[0].shape[:-1], pair[1].shape[:-1])
        return torch.cat([part.expand(*shape, -1) for part in pair], dim=-1)


class LinearOfPairs(nn.Linear):
    """A linear layer of [a, b] for all pairs of vectors, which are broadcast."""

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:  # type: ignore[override]
        """Its outputs for all pairs (…, out)."""
        return linear(pair, self.weight, self.bias)


def linear(inputs: Tensor | tuple[Tensor, Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer; of pairs [a, b], every a and every b is multiplied once only."""
    if isinstance(inputs, Tensor):
        return F.linear(inputs, weight, bias)
    a, b = inputs
    of_a, of_b = weight.split([a.shape[-1], b.shape[-1]], dim=1)
    return F.linear(a, of_a) + F.linear(b, of_b, bias)
