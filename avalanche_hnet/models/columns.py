"""Which units of a shared output layer are a task's, and in which columns they go."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Columns:
    """A task's units of an output layer, and the columns of their classes.

    Attributes:
        units: U' of U units.
        classes: the class label of each.
        number: how many columns there are, one for each class label from 0.
        mask_value: what the other columns hold.
    """

    units: list[int]
    classes: list[int]
    number: int
    mask_value: float

    def of(self, outputs: Tensor) -> Tensor:
        """Columns (B, number) by class of the task's units in ``outputs`` (B, U)."""
        if self.classes == list(range(self.number)):
            return outputs[:, self.units]
        columns = [outputs.new_full(outputs.shape[:1], self.mask_value)] * self.number
        for unit, class_ in zip(self.units, self.classes, strict=True):
            columns[class_] = outputs[:, unit]
        return torch.stack(columns, dim=1)


class SelectColumns(nn.Module):
    """The last module of a main network that shares its output layer with other tasks."""

    def __init__(self, columns: Columns) -> None:
        super().__init__()
        self.columns = columns

    def forward(self, outputs: Tensor) -> Tensor:
        """See :meth:`Columns.of`."""
        return self.columns.of(outputs)
