"""A multi-task module of Avalanche that keeps a record of its tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from avalanche.benchmarks import CLExperience
from avalanche.models import MultiTaskModule
from torch import Tensor, nn

from avalanche_hnet.data.experiences import labels_of
from avalanche_hnet.models.task_registry import TaskRegistry


class MultiTaskModel(MultiTaskModule):
    """What every model with a registry of its tasks has in common.

    A subclass says how it runs (``forward``, :meth:`forward_tasks`) and which parameters belong to
    one task (:meth:`task_parameters`), and registers tasks when it is adapted to an experience.
    """

    max_class_label: int
    known_train_tasks_labels: set[int]

    def __init__(self) -> None:
        super().__init__()
        self.tasks = TaskRegistry()

    @property
    def task_labels(self) -> tuple[int, ...]:
        """Labels of the tasks, in the order of their numbers."""
        return self.tasks.labels

    @property
    def trained_task_labels(self) -> tuple[int, ...]:
        """Labels of the tasks that have been, or are being, trained on."""
        return self.tasks.trained_labels

    def task_number(self, label: int) -> int:
        """The number of the task with this label, in the order in which tasks came.

        Raises:
            ValueError: if it is not known.
        """
        return self.tasks.number(label)

    def task_parameters(self, label: int) -> dict[str, nn.Parameter]:
        """The parameters that belong to one task, by name."""
        raise NotImplementedError

    def active_elements(self, experience: CLExperience) -> dict[str, Tensor]:
        """All elements but those of other tasks, for :class:`PriorEWCPlugin`."""
        labels = labels_of(experience)
        return {
            name: torch.tensor(False)
            for label in self.task_labels
            if label not in labels
            for name in self.task_parameters(label)
        }

    def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
        """Outputs (B, …) for ``x`` (B, …), all of one task."""
        outputs: Tensor = self.forward(x, task_label)
        return outputs

    def forward_tasks(self, x: Tensor, task_labels: Sequence[int]) -> Tensor:
        """Outputs (T, B, …) for all of ``x`` (B, …) under each of T tasks."""
        raise NotImplementedError

    def forward_all_tasks(self, x: Tensor) -> dict[int, Tensor]:
        """Outputs (B, …) for ``x`` by task label, for all tasks that were trained on."""
        labels = self.trained_task_labels
        return dict(zip(labels, self.forward_tasks(x, labels), strict=True))
