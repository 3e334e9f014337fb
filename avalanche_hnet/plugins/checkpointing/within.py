"""Checkpoints in the middle of an experience.

To go on there, the experience is begun again from the state that it began with: loaders, penalties
and what else a strategy makes at the start of an experience cannot be saved. Its batches are drawn
again, up to the one where the checkpoint was made, and then its state is put in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from avalanche.training.templates import SupervisedTemplate
from avalanche.training.templates.update_type import SGDUpdate

from avalanche_hnet.core.common.random_states import random_state, set_random_state
from avalanche_hnet.core.common.same_values import is_same
from avalanche_hnet.plugins.checkpointing.run import Run
from avalanche_hnet.plugins.checkpointing.watch import Stage, watch


def refuse_other_loops(strategy: SupervisedTemplate) -> None:
    """Refuse a strategy with a loop of its own over batches.

    Raises:
        ValueError: naming it.
    """
    if type(strategy).training_epoch is not SGDUpdate.training_epoch:
        raise ValueError(
            f"every_iterations does not go with {type(strategy).__name__}, which has a loop over "
            "batches of its own; leave every_iterations at None"
        )


class Within:
    """Where in an experience a strategy is, and how to get there again.

    Args:
        run: saves and loads.
        every: so many iterations are between two checkpoints.
    """

    def __init__(self, run: Run, every: int) -> None:
        self._run = run
        self._every = every
        self._middle: Mapping[str, Any] | None = None  # where the run goes on
        self._epoch = 0
        # Of the present epoch:
        self._iteration = 0
        self._start: Mapping[str, Any] = {}
        """The random state that its loader started with."""
        self._draws: list[list[Any]] = []
        """Iterations whose batch took random numbers that depend on others before, and these."""
        self._before_batch: Mapping[str, Any] | None = None
        self._after_batch: Mapping[str, Any] | None = None

    def watch(self, strategy: SupervisedTemplate) -> None:
        """Follow a strategy's loop."""
        watch(strategy, "_before_training_epoch", self._before_training_epoch)
        watch(strategy, "training_epoch", self._training_epoch)
        watch(strategy, "_after_training_epoch", self._after_training_epoch)
        watch(strategy, "_before_training_iteration", self._before_training_iteration)
        watch(strategy, "_after_training_iteration", self._after_training_iteration)

    def begin_experience(self, middle: Mapping[str, Any] | None) -> None:
        """An experience begins, or goes on in the middle."""
        self._epoch = 0
        self._middle = middle
        if middle is not None:
            self._run.strategy.evaluator.active = False

    @property
    def _is_behind(self) -> bool:
        """Whether this epoch was finished before."""
        return self._middle is not None and self._epoch < self._middle["within"]["epoch"]

    def _before_training_epoch(self, original: Stage, **kwargs: Any) -> None:
        if not self._is_behind:
            original(**kwargs)

    def _training_epoch(self, original: Stage, **kwargs: Any) -> None:
        if self._is_behind:
            return
        if self._middle is not None:
            self._go_on(self._middle, original, **kwargs)
            return
        self._iteration, self._draws = 0, []
        self._before_batch = self._after_batch = None
        self._start = random_state()
        original(**kwargs)

    def _after_training_epoch(self, original: Stage, **kwargs: Any) -> None:
        if not self._is_behind:
            original(**kwargs)
        self._epoch += 1

    def _before_training_iteration(self, original: Stage, **kwargs: Any) -> None:
        now = random_state()
        before, last = self._before_batch, self._after_batch
        draws = before is not None and not is_same(before, now)
        if draws and not (last is not None and is_same(before, last)):
            self._draws.append([self._iteration, before])
        self._after_batch = now
        original(**kwargs)

    def _after_training_iteration(self, original: Stage, **kwargs: Any) -> None:
        original(**kwargs)
        self._iteration += 1
        self._before_batch = random_state()
        if self._run.is_broken or self._run.strategy.clock.train_exp_iterations % self._every:
            return
        self._run.save_within(
            {
                "epoch": self._epoch,
                "iteration": self._iteration,
                "start": self._start,
                "draws": self._draws,
                "after batch": self._after_batch,
            }
        )

    def _go_on(self, middle: Mapping[str, Any], original: Stage, **kwargs: Any) -> None:
        where, strategy = middle["within"], self._run.strategy
        self._middle = None
        self._iteration, self._start = where["iteration"], where["start"]
        self._draws, self._after_batch = list(where["draws"]), where["after batch"]
        draws = dict(map(tuple, self._draws))
        loader = strategy.dataloader
        set_random_state(self._start)
        batches = iter(loader)
        for number in range(self._iteration):
            if number in draws:
                set_random_state(draws[number])
            next(batches)
        self._run.load(middle)
        self._before_batch = random_state()
        kind = type(loader)  # the same loader, but for the batches that have been taken
        loader.__class__ = type(kind.__name__, (kind,), {"__iter__": lambda _: batches})
        try:
            original(**kwargs)
        finally:
            loader.__class__ = kind
