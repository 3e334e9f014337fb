"""The networks of the scenarios: an MLP with the head that each calls for."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from torch import Tensor, nn

from avalanche_hnet import BlockMultiHeadClassifier
from experiments.options import Head


def mlp(
    heads: Literal["task", "domain"] | Head,
    n_inputs: int,
    hidden: tuple[int, ...],
    n_classes: int,
    dropout: float = 0.0,
    input_noise: float = 0.0,
) -> nn.Module:
    """An MLP on flattened inputs; ``n_classes`` counts those of a layer of fixed size."""
    sizes = (n_inputs, *hidden)
    features = nn.Sequential(nn.Flatten())
    if input_noise:
        features.append(GaussianNoise(input_noise))
    for n_in, n_out in pairwise(sizes):
        features.extend([nn.Linear(n_in, n_out), nn.ReLU()])
        if dropout:
            features.append(nn.Dropout(dropout))
    if heads == "task":
        return MultiHeadNetwork(features, MultiHeadClassifier(sizes[-1]))
    if heads == "separate":  # classes differ in number of columns, which Avalanche's fill up
        return MultiHeadNetwork(features, BlockMultiHeadClassifier(sizes[-1]))
    if heads == "growing":
        return nn.Sequential(features, IncrementalClassifier(sizes[-1]))
    return nn.Sequential(features, nn.Linear(sizes[-1], n_classes))


class GaussianNoise(nn.Module):
    """Adds noise of standard deviation ``std`` to its inputs in training."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, x: Tensor) -> Tensor:
        """Inputs of any shape."""
        return x + self.std * torch.randn_like(x) if self.training else x


class MultiHeadNetwork(MultiTaskModule):
    """Shared features and one head per task."""

    def __init__(self, features: nn.Module, head: MultiTaskModule) -> None:
        super().__init__()
        self.features = features
        self.head = head

    def forward(self, x: Tensor, task_labels: Tensor) -> Tensor:
        """Logits (B, C) of inputs (B, …) with task labels (B,)."""
        logits: Tensor = self.head(self.features(x), task_labels)
        return logits
