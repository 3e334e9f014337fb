"""Small networks that tell modes in the plane apart, in the forms that the scenarios call for."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.benchmarks import CLExperience
from avalanche.models import MultiTaskModule
from torch import Tensor, nn

from experiments.common.layers import hidden_layers


class ModeNetwork(MultiTaskModule):
    """Features and a head. Task labels may be given, whether or not they change the outputs.

    Args:
        features: one network for all tasks, or one for each task label.
        head: called with features and, if it is a multi-task module (which it must be where tasks
            have features of their own), task labels.
    """

    def __init__(self, features: list[nn.Sequential], head: nn.Module) -> None:
        super().__init__()
        self.features = nn.ModuleList(features)
        self.head = head

    def forward(self, x: Tensor, task_labels: Tensor | int | None) -> Any:
        """Logits (B, C) of inputs (B, 2), for task labels (B,) or one label for all."""
        if len(self.features) > 1:
            return super().forward(x, task_labels)
        arguments = (task_labels,) if isinstance(self.head, MultiTaskModule) else ()
        return self.head(self.features[0](x), *arguments)

    def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
        """Logits (B, C) of inputs (B, 2), all of one task with features of its own."""
        logits: Tensor = self.head(self.features[task_label](x), task_label)
        return logits

    def active_elements(self, experience: CLExperience) -> dict[str, Tensor]:
        """The features of the experience's tasks, for :class:`PriorEWCPlugin`."""
        if len(self.features) == 1:
            return {}
        return {
            f"features.{name}": torch.tensor(int(name.split(".")[0]) in experience.task_labels)
            for name, _ in self.features.named_parameters()
        }


def mlp(hidden: tuple[int, ...], activation: str) -> nn.Sequential:
    """Hidden layers on two inputs, with an activation of ``torch.nn``."""
    return hidden_layers((2, *hidden), getattr(nn, activation))
