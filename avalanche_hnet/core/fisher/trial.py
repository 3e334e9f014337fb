"""The comparison of fast methods with single samples, on a few of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from avalanche_hnet.core.fisher.by_loop import ByLoop
from avalanche_hnet.core.fisher.methods import ByName
from avalanche_hnet.core.fisher.one_task import OneTask

# Samples on which methods are tried.
N_TRIAL = 3


@dataclass(frozen=True, eq=False)
class Trial:
    """A few samples with their true squared gradients.

    Attributes:
        x: inputs (B, …).
        factor: random factors of the outputs, since the gradients of a perfect fit vanish.
        truth: squared gradients from single samples; parameters without gradients are left out.
    """

    x: Tensor
    factor: Tensor
    truth: ByName

    def disagreeing(self, names: Collection[str], squares: ByName) -> set[str]:
        """Names whose gradients (roots of squares) are wrong by more than rounding, anywhere.

        That includes those that are there and should not be, or the reverse.
        """
        largest = torch.stack([square.max() for square in self.truth.values()]).max().sqrt()
        return {name for name in names if not self._agree(name, squares, largest)}

    def _agree(self, name: str, squares: ByName, largest: Tensor) -> bool:
        if name not in squares or name not in self.truth:
            return name not in squares and name not in self.truth
        root = self.truth[name].sqrt()
        tolerance, rounding = tolerances(root.dtype)
        close = (squares[name].sqrt() - root).abs() <= tolerance * root + rounding * largest
        return bool(close.all())


def make_trial(task: OneTask, x: Tensor, outputs: Tensor) -> Trial:
    """The trial on inputs ``x``, whose outputs only lend their shape and type."""
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(outputs.shape, generator=generator).to(outputs)
    return Trial(x, factor, ByLoop(task.parameters, task, x).squares(factor))


def tolerances(dtype: torch.dtype) -> tuple[float, float]:
    """Relative to a number itself, and to the largest of its kind."""
    eps = torch.finfo(dtype).eps
    return eps**0.3, min(1e2 * eps, eps**0.5)


def refuse_mixed_samples(singles: Tensor, batched: Tensor) -> None:
    """Check that samples have the same outputs (B, …) alone and together.

    Raises:
        ValueError: if the output for a sample depends on the other samples of its batch.
    """
    tolerance, rounding = tolerances(batched.dtype)
    unit_scale = singles.abs().amax(0) + rounding * singles.abs().max()
    if not ((batched - singles).abs() <= tolerance * unit_scale).all():
        raise ValueError(
            "model gives a sample different outputs alone and in a batch, or from call to "
            "call, in evaluation mode, so it has no per-sample gradients; look for layers "
            "that mix samples (batch statistics) or draw random numbers (dropout) in "
            "evaluation mode"
        )
