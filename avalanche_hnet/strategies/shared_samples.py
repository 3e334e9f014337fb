"""What strategies of hypernetworks do where several processes train them together."""

from __future__ import annotations

from typing import Any

from torch import nn

from avalanche_hnet.core.common.processes import are_several, take_first
from avalanche_hnet.data.processes import evaluate_all, shuffle_anew
from avalanche_hnet.models.hyper_model import HyperModel
from avalanche_hnet.models.task_inference import TaskInference


class SharedSamples:
    """A base of strategies, in front of Avalanche's, whose processes share samples."""

    dataloader: Any
    clock: Any
    model: Any

    def _before_training_epoch(self, **kwargs: Any) -> None:
        super()._before_training_epoch(**kwargs)  # type: ignore[misc]
        shuffle_anew(self.dataloader, self.clock.train_exp_epochs)

    def _before_eval_exp(self, **kwargs: Any) -> None:
        super()._before_eval_exp(**kwargs)  # type: ignore[misc]
        evaluate_all(self.dataloader)
        share_new_tasks(self.model)


def share_new_tasks(model: nn.Module) -> None:
    """Let tasks that an evaluation has added be the same in all processes, before any training.

    Args:
        model: a :class:`HyperModel`, maybe behind its :class:`TaskInference`.
    """
    own = model.model if isinstance(model, TaskInference) else model
    if are_several() and isinstance(own, HyperModel):
        new = [label for label in own.task_labels if label not in own.trained_task_labels]
        take_first([p for label in new for p in own.task_parameters(label).values()])
