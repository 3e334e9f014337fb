"""Which output units an experience needs, and which outputs are a task's."""

from __future__ import annotations

import torch
from avalanche.benchmarks import CLExperience
from torch import Tensor, nn


def labels_of(experience: CLExperience) -> list[int]:
    """The task labels of an experience.

    Raises:
        ValueError: if it has none.
    """
    if not hasattr(experience, "task_labels"):
        raise ValueError(
            "the experience has no task_labels, which a HyperModel needs; make the benchmark with "
            "task labels, for example by avalanche.benchmarks.with_task_labels"
        )
    return [int(label) for label in experience.task_labels]


def whole(experience: CLExperience) -> CLExperience:
    """Of a piece of an experience in an online stream, the experience."""
    return getattr(experience, "origin_experience", experience)


def tasks_and_classes(experience: CLExperience) -> set[tuple[int, int]]:
    """The pairs of task label and class label that the experience has samples of.

    In regression, where there are no classes, the number of a target's component takes the
    place of the class label.
    """
    labels = experience.task_labels
    dataset = experience.dataset
    target = torch.as_tensor(dataset[0][1])
    if target.is_floating_point():
        return {(int(t), d) for t in labels for d in range(target.numel())}
    if len(labels) == 1:
        classes = getattr(experience, "classes_in_this_experience", dataset.targets)
        return {(int(labels[0]), int(c)) for c in classes}
    return {
        (int(t), int(c)) for t, c in zip(dataset.targets_task_labels, dataset.targets, strict=True)
    }


class SelectUnits(nn.Module):
    """The last module of a main network that shares its output layer with other tasks."""

    def __init__(
        self, units: list[int], classes: list[int], n_columns: int, mask_value: float
    ) -> None:
        super().__init__()
        self.arguments = (units, classes, n_columns, mask_value)

    def forward(self, outputs: Tensor) -> Tensor:
        """See :func:`select_units`."""
        return select_units(outputs, *self.arguments)


def select_units(
    outputs: Tensor, units: list[int], classes: list[int], n_columns: int, mask_value: float
) -> Tensor:
    """Columns (B, n_columns) by class of the task's own units in ``outputs`` (B, U)."""
    if classes == list(range(n_columns)):
        return outputs[:, units]
    columns = [outputs.new_full(outputs.shape[:1], mask_value)] * n_columns
    for unit, class_ in zip(units, classes, strict=True):
        columns[class_] = outputs[:, unit]
    return torch.stack(columns, dim=1)
