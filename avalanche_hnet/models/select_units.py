"""Which outputs of a shared output layer are a task's."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
