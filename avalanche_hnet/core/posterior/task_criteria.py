"""How sure a prediction is, to tell which task a sample comes from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

InferenceCriterion = Literal["entropy", "confidence", "agreement"]


def entropy(probabilities: Tensor) -> Tensor:
    """−Σ_c p_c log p_c over dimension 1, in nats."""
    return -(probabilities * probabilities.clamp_min(1e-300).log()).sum(1)


def doubt(probabilities: Tensor) -> Tensor:
    """1 − max_c p_c over dimension 1, without cancellation where that is tiny."""
    return probabilities.sort(dim=1).values[:, :-1].sum(1)


def disagreement(draws: Iterable[Tensor]) -> Tensor:
    """The standard deviation of p_c over draws of networks, summed over the classes c."""
    probabilities = torch.stack([*draws])
    return probabilities.std(0, correction=0).sum(1)
