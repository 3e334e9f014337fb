"""What several processes that train a hypernetwork agree on."""

from __future__ import annotations

from torch import nn

from avalanche_hnet.core.common.processes import are_several, take_first
from avalanche_hnet.models.hyper_model import HyperModel
from avalanche_hnet.models.task_inference import TaskInference


def share_new_tasks(model: nn.Module) -> None:
    """Let tasks that an evaluation has added be the same in all processes, before any training.

    Args:
        model: a :class:`HyperModel`, maybe behind its :class:`TaskInference`.
    """
    own = model.model if isinstance(model, TaskInference) else model
    if are_several() and isinstance(own, HyperModel):
        new = [label for label in own.task_labels if label not in own.trained_task_labels]
        take_first([p for label in new for p in own.task_parameters(label).values()])
