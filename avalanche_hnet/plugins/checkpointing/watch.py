"""Methods of one strategy, the object, in front of those of its class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from avalanche.training.templates import SupervisedTemplate

Stage = Callable[..., Any]


def watch(strategy: SupervisedTemplate, name: str, stage: Stage) -> None:
    """Have a strategy call ``stage(original, ...)`` in the place of one of its methods."""
    original = getattr(strategy, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        return stage(original, *args, **kwargs)

    setattr(strategy, name, watched)
