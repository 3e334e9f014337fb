"""Networks for one-dimensional regression whose units answer near their centres only."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.models import MultiHeadClassifier, MultiTaskModule
from torch import Tensor, nn


class GaussianActivation(nn.Module):
    """exp(-x²/2): a unit that answers only near its centre."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return torch.exp(-x.square() / 2)


class MultiHeadNetwork(MultiTaskModule):
    """Shared features, and an output unit for each task."""

    def __init__(self, features: nn.Module, n_features: int) -> None:
        super().__init__()
        self.features = features
        self.head = MultiHeadClassifier(n_features, initial_out_features=1)

    def forward(self, x: Tensor, task_labels: Tensor | int | None) -> Any:
        """Outputs (B, 1) of inputs (B, 1) for task labels (B,) or one label."""
        return self.head(self.features(x), task_labels)
