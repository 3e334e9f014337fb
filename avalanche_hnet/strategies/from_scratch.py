"""Start each experience from the weights at construction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from avalanche_hnet.models.hyper_model import HyperModel


@torch.no_grad()
def start_from_scratch(
    model: HyperModel,
    theta: Mapping[str, nn.Parameter],
    initial: Mapping[str, Tensor],
    task_labels: Iterable[int],
) -> None:
    """Put what tasks share, and all that belongs to some tasks, back to what it was at first.

    Args:
        model: has the parameters.
        theta: what tasks share, by name.
        initial: values by name.
        task_labels: of the experience that is to start.
    """
    for name, parameter in theta.items():
        parameter.copy_(initial[name])
    for label in task_labels:
        model.reset_task(label)
