"""Layers of the experiments' networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn


def hidden_layers(
    widths: Sequence[int], activation: Callable[[], nn.Module], dropout: float = 0.0
) -> nn.Sequential:
    """Linear layers from each width to the next, an activation after each, and dropout if any."""
    layers = nn.Sequential()
    for n_in, n_out in pairwise(widths):
        layers.extend([nn.Linear(n_in, n_out), activation()])
        if dropout:
            layers.append(nn.Dropout(dropout))
    return layers
