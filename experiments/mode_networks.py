"""The networks that tell modes apart: an MLP for all tasks, or for each, and its heads."""

from __future__ import annotations

from itertools import pairwise

from avalanche.models import MultiTaskModule
from torch import Tensor, nn


class ModeNetwork(MultiTaskModule):
    """Features and a head, called with task labels whether or not these change the outputs.

    Args:
        features: one network for all tasks, or one for each task label.
        head: of the features and, if it is a multi-task module, the task labels.
    """

    def __init__(self, features: list[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.features = nn.ModuleList(features)
        self.head = head

    def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
        """Logits (B, C) of inputs (B, 2) of one task."""
        features = self.features[task_label if len(self.features) > 1 else 0](x)
        arguments = (task_label,) if isinstance(self.head, MultiTaskModule) else ()
        logits: Tensor = self.head(features, *arguments)
        return logits


def mlp(hidden: tuple[int, ...], activation: type[nn.Module]) -> nn.Sequential:
    """Hidden layers on two inputs."""
    network = nn.Sequential()
    for n_in, n_out in pairwise((2, *hidden)):
        network.extend([nn.Linear(n_in, n_out), activation()])
    return network
