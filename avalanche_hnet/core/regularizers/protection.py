"""What a regulariser of generated weights protects in one experience."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from avalanche_hnet.core.hypernetworks.network import HyperNetwork
from avalanche_hnet.core.hypernetworks.output_layer import Factors
from avalanche_hnet.core.hypernetworks.trunk_inputs import Embedded
from avalanche_hnet.core.regularizers.deviation import UnitClasses


@dataclass(frozen=True, eq=False)
class Protection:
    """The protected tasks of one experience.

    Attributes:
        hypernetwork: generates the weights.
        tasks: numbers of the T protected tasks.
        owners: (W,), for each weight the task for which it counts, ``SHARED`` or ``UNUSED``.
        quadratic: whether the sum of squares is evaluated in the quadratic form.
        embedded: the embeddings of the tasks, where they are constant; None where they are trained.
    """

    hypernetwork: HyperNetwork
    tasks: tuple[int, ...]
    owners: Tensor
    quadratic: bool
    embedded: Embedded | None

    @cached_property
    def numbers(self) -> Tensor:
        """The tasks' numbers as a vector (T,)."""
        return torch.tensor(self.tasks, device=self.owners.device)

    @cached_property
    def units(self) -> UnitClasses:
        """The units of the output layer by the tasks for which they count."""
        return UnitClasses(self.owners, self.hypernetwork.chunk_size)

    @cached_property
    def trunk(self) -> tuple[nn.Module, ...]:
        """All modules of the hypernetwork's trunk."""
        return tuple(self.hypernetwork.trunk.modules())

    @cached_property
    def _rows(self) -> dict[int, int]:
        return {task: row for row, task in enumerate(self.tasks)}

    def rows_of(self, tasks: list[int], of_all: Tensor) -> Tensor:
        """The rows of ``of_all`` (T, …) that belong to ``tasks``."""
        if len(tasks) == len(of_all):
            return of_all
        return of_all[[self._rows[task] for task in tasks]]

    def factors(self, tasks: list[int], parameters: Mapping[str, Tensor]) -> Factors:
        """Factors of the weights of protected tasks at ``parameters``, by name."""
        if self.embedded is None:
            return self.hypernetwork.factors(tasks, parameters)
        of_tasks, of_chunks = self.embedded
        embedded = Embedded(
            self.rows_of(tasks, of_tasks),
            None if of_chunks is None else self.rows_of(tasks, of_chunks),
        )
        return self.hypernetwork.factors_of(embedded, parameters)
