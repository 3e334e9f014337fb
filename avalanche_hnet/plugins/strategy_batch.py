"""A batch, taken apart as a strategy does it."""

from __future__ import annotations

from typing import Any

from avalanche.training.templates import SupervisedTemplate


def taken_apart(
    strategy: SupervisedTemplate, batch: Any, *, with_task_labels: bool
) -> tuple[Any, ...]:
    """``(x, y)`` or ``(x, y, task_labels)`` of a batch, on the strategy's device.

    They are what the strategy's own ``_unpack_minibatch``, ``mb_x``, ``mb_y`` and ``mb_task_id``
    make of it, which strategies for batches of other kinds (dictionaries) override.

    Args:
        strategy: left as it was.
        batch: as its loader yields it.
        with_task_labels: whether there must be any.
    """
    before = strategy.mbatch
    try:
        strategy.mbatch = batch
        strategy._unpack_minibatch()
        columns = strategy.mb_x, strategy.mb_y
        return (*columns, strategy.mb_task_id) if with_task_labels else columns
    finally:
        strategy.mbatch = before
