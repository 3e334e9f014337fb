"""The arguments of Avalanche's training loop, checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from avalanche.core import BasePlugin
from torch import Tensor

from avalanche_hnet.core.common.arguments import at_least, integer, one_of

Criterion = Callable[[Any, Tensor], Tensor]
PeriodicEvaluation = Literal["experience", "epoch", "iteration"]


def check_loop(
    *,
    criterion: Criterion | None,
    plugins: Sequence[BasePlugin] | None,
    train_mb_size: int,
    train_epochs: int,
    eval_mb_size: int | None,
    eval_every: int,
    peval_mode: PeriodicEvaluation,
) -> None:
    """Refuse what Avalanche would stumble over later.

    Raises:
        TypeError, ValueError: naming the argument, its value and what would be right.
    """
    if criterion is not None and (isinstance(criterion, type) or not callable(criterion)):
        raise TypeError(
            "criterion must be called with outputs and targets, such as nn.CrossEntropyLoss(), "
            f"got {criterion!r}"
        )
    if plugins is not None and not isinstance(plugins, Sequence):
        raise TypeError(f"plugins must be a list of plugins or None, got {plugins!r}")
    at_least(1, train_mb_size=train_mb_size)
    at_least(0, train_epochs=train_epochs)
    if eval_mb_size is not None:
        at_least(1, eval_mb_size=eval_mb_size)
    integer("an integer: -1 for never, 0 for once at the end, n for every n", eval_every=eval_every)
    one_of(PeriodicEvaluation, peval_mode=peval_mode)
