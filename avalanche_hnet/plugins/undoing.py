"""What a training that failed has changed goes back."""

from __future__ import annotations

from typing import Any

from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate

from avalanche_hnet.core.common.buffers_before import BuffersBefore
from avalanche_hnet.core.common.exchange import LatestUpdate


class UndoingPlugin(SupervisedPlugin):
    """Base of a plugin that takes experiences in, and may refuse a batch after its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self._latest = LatestUpdate()
        self._buffers = BuffersBefore()

    def before_training(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """What is taken in so far stays, unless its training was broken off and comes again."""
        self._latest.begin()

    def after_training(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """What was taken in stays, even if one of the experiences is trained again."""
        self._latest.forget()
