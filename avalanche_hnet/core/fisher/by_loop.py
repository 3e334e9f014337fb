"""Squared per-sample gradients of one sample after the other: slow, and always right."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from avalanche_hnet.core.common.samples import Samples
from avalanche_hnet.core.fisher.methods import ByName, PerSample
from avalanche_hnet.core.fisher.one_task import OneTask


class LostDimensionError(ValueError):
    """A sample that is alone has an output of another shape than in a batch.

    Args:
        alone: its shape alone.
        expected: its shape in a batch.
    """

    def __init__(self, alone: torch.Size, expected: torch.Size) -> None:
        super().__init__(
            f"model must return an output of shape {tuple(expected)} for one sample, as in a "
            f"batch; got {tuple(alone)}"
        )


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
    x: Tensor | Samples

    def gradients(self, factor: Tensor) -> Iterator[tuple[slice, ByName]]:
        """See :class:`PerSample`; parameters without gradients are left out."""
        for row, _, gradients in self.outputs_and_gradients(factor):
            yield row, {name: gradient[None] for name, gradient in gradients.items()}

    def outputs_and_gradients(self, factor: Tensor) -> Iterator[tuple[slice, Tensor, ByName]]:
        """The same of each sample alone, (…), with its output (1, …)."""
        chosen = [self.task.parameters[name] for name in self.names]
        if not chosen:
            return
        for n in range(len(self.x)):
            row = slice(n, n + 1)
            out = self.task.outputs(self.x[row])
            if out.shape != factor[row].shape:
                raise LostDimensionError(out.shape, factor[row].shape)
            gradients: Sequence[Tensor | None] = [None] * len(chosen)
            if out.requires_grad:
                gradients = _gradients(out, chosen, factor[row].to(out.dtype), self.task)
            yield (
                row,
                out.detach(),
                {
                    name: gradient.to_dense() if gradient.is_sparse else gradient
                    for name, gradient in zip(self.names, gradients, strict=True)
                    if gradient is not None
                },
            )


def _gradients(
    out: Tensor, parameters: Sequence[nn.Parameter], factor: Tensor, task: OneTask
) -> Sequence[Tensor | None]:
    try:
        # The graph is kept for backward().
        return torch.autograd.grad(out, parameters, factor, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "checkpoint" not in str(error):
            raise
    # Reentrant checkpoints know only backward(), which writes to the parameters.
    before = [(p, p.grad) for p in task.model.parameters()]
    try:
        for parameter, _ in before:
            parameter.grad = None
        torch.autograd.backward(out, factor)
        return [p.grad for p in parameters]
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient
