"""Networks for one-dimensional regression whose units answer near their centres only."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.models import MultiHeadClassifier, MultiTaskModule
from torch import Tensor, nn

from experiments.common.layers import hidden_layers
from experiments.common.uncertainty.options import UncertaintyOptions


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


def make_network(options: UncertaintyOptions, interval: tuple[float, float]) -> nn.Module:
    """An MLP from one number to one, or to one for each task.

    Centres of the first layer's units are uniform over the interval, unless ``steepness`` is 0.
    """
    activations = {"Gaussian": GaussianActivation}
    activation = activations.get(options.activation) or getattr(nn, options.activation)
    features = hidden_layers((1, *options.hidden), activation)
    first = features[0]
    assert isinstance(first, nn.Linear)
    if options.steepness > 0:
        with torch.no_grad():
            slopes = options.steepness * torch.empty(len(first.bias)).uniform_(0.5, 1.5)
            slopes *= torch.where(torch.rand(len(slopes)) < 0.5, -1, 1)
            centres = torch.empty(len(slopes)).uniform_(*interval)
            first.weight[:, 0] = slopes
            first.bias.copy_(-slopes * centres)
    if options.head == "multi":
        return MultiHeadNetwork(features, options.hidden[-1])
    return features.append(nn.Linear(options.hidden[-1], 1))
