"""Batches whose inputs are not one tensor, in Avalanche's strategies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from avalanche.training.templates.problem_type import SupervisedProblem

from avalanche_hnet.core.common.structures import described, map_tensors


class AnyBatches:
    """A base of strategies, in front of Avalanche's, which moves tensors in any structure.

    Avalanche takes batches for lists of tensors. Here the inputs, ``batch[0]``, may be a
    dictionary, tuple or dataclass of tensors. Where the batch itself is a dictionary, a subclass
    says what is what by its own properties ``mb_x``, ``mb_y`` and ``mb_task_id``, as in Avalanche.
    """

    mbatch: Any
    device: torch.device

    def _unpack_minibatch(self) -> None:
        batch, kind = self.mbatch, type(self)
        takes_by_position = getattr(kind, "mb_x", None) is SupervisedProblem.mb_x
        if isinstance(batch, Mapping) and takes_by_position:
            raise TypeError(
                f"batches must be lists (x, y, ..., task labels), got {described(batch)}; let the "
                f"data set's collate_fn make lists, or a subclass of {kind.__name__} say what is "
                "what by properties mb_x, mb_y and mb_task_id"
            )
        batch = list(batch) if isinstance(batch, tuple) else batch
        self.mbatch = map_tensors(lambda t: t.to(self.device, non_blocking=True), batch)
