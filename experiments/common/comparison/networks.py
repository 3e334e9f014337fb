"""The networks of the comparisons: an MLP with the head that the scenario calls for."""

from __future__ import annotations

from typing import Literal

import torch
from avalanche.benchmarks import CLScenario
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from torch import Tensor, nn

from avalanche_hnet import BlockMultiHeadClassifier
from experiments.common.comparison.options import Options
from experiments.common.layers import hidden_layers
from experiments.common.methods import METHODS, MethodName
from experiments.common.settings import Head


def make_model(method: MethodName, benchmark: CLScenario, options: Options) -> nn.Module:
    """The network of a method, with the output layer that the scenario calls for."""
    stream = benchmark.train_stream
    x, *_ = stream[0].dataset[0]
    n_classes = 1 + max(c for e in stream for c in e.classes_in_this_experience)
    regularized = {"dropout": options.dropout, "input_noise": options.input_noise}
    if not METHODS[method].through_hypernetwork:
        return mlp(options.heads, x.numel(), options.hidden, n_classes, **regularized)
    if options.scenario == "class" and not options.hypernet.multi_head:
        n_classes = max(len(e.classes_in_this_experience) for e in stream)  # each task has a head
    elif options.scenario != "class" and options.hypernet.multi_head:
        n_classes *= len(stream)
    target = mlp("fixed", x.numel(), options.hidden, n_classes, **regularized)
    return options.hypernet.make_model(target, global_classes=options.scenario == "class")


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
    features.extend(hidden_layers(sizes, nn.ReLU, dropout))
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
