"""Squared per-sample gradients of one sample after the other: slow, and always right."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from avalanche_hnet.core.fisher.methods import ByName, PerSample
from avalanche_hnet.core.fisher.one_task import OneTask


@dataclass(frozen=True, eq=False)
class ByLoop(PerSample):
    """Any model.

    Attributes:
        names: of the parameters.
        task: the model.
        x: inputs of the batch.
    """

    names: Collection[str]
    task: OneTask
    x: Tensor

    def gradients(self, factor: Tensor) -> Iterator[tuple[slice, ByName]]:
        """See :class:`PerSample`; parameters without gradients are left out."""
        chosen = [self.task.parameters[name] for name in self.names]
        if not chosen:
            return
        for n in range(len(self.x)):
            row = slice(n, n + 1)
            out = self.task.outputs(self.x[row])
            if not out.requires_grad:
                continue
            gradients = torch.autograd.grad(out, chosen, factor[row], allow_unused=True)
            yield (
                row,
                {
                    name: gradient.to_dense()[None]
                    for name, gradient in zip(self.names, gradients, strict=True)
                    if gradient is not None
                },
            )
