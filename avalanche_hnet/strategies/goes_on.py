"""Strategies that go on after a training or an evaluation that was broken off."""

from __future__ import annotations

from typing import Any

from avalanche_hnet.core.common.exchange import LatestUpdate
from avalanche_hnet.plugins.task_inference import TaskInferencePlugin
from avalanche_hnet.plugins.task_statistics import TaskStatisticsPlugin


class GoesOn:
    """A base of strategies, in front of Avalanche's.

    Avalanche leaves a model in evaluation mode, and plugins' changes in place, if an evaluation
    fails or is interrupted. Here all is as it was before the evaluation.

    Attributes:
        latest_update: what the experience that was taken in last has changed; None where plugins
            see to that.
    """

    plugins: Any
    latest_update: LatestUpdate | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """See Avalanche's ``train``."""
        update = self.latest_update
        if update is not None:
            update.begin()
        metrics = super().train(*args, **kwargs)  # type: ignore[misc]
        if update is not None:
            update.forget()
        return metrics

    def eval(self, *args: Any, **kwargs: Any) -> Any:
        """See Avalanche's ``eval``."""
        # Of the class: plugins may watch the object's own calls.
        strategy: Any = type(self)
        state = strategy._save_train_state(self)
        try:
            return super().eval(*args, **kwargs)  # type: ignore[misc]
        except BaseException:
            for plugin in self.plugins:
                if isinstance(plugin, TaskInferencePlugin | TaskStatisticsPlugin):
                    plugin.take_away(self)
            strategy._load_train_state(self, state)
            raise
