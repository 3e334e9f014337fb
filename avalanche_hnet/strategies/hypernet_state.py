"""What a :class:`HypernetTemplate` carries on, for :class:`CheckpointPlugin`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from avalanche_hnet.core.common.same_values import is_same
from avalanche_hnet.plugins.checkpointing.optimizer_state import (
    load_optimizer_state,
    optimizer_state,
)

if TYPE_CHECKING:
    from avalanche_hnet.strategies.hypernet import HypernetTemplate

# Its attributes, most of which are options or made anew for each experience.
ATTRIBUTES = (
    "regularizer",
    "prior_variance",
    "train_from_scratch",
    "likelihood",
    "log_every",
    "movement",
    "embedding_optimizer",
    "latest_update",
    "_buffers",
    "_make_embedding_optimizer",
    "_initial",
    "_pieces",
    "_roles",
    "_resolved_likelihood",
    "_generated",
    "_prior",
    "_to_publish",
)


def strategy_state(strategy: HypernetTemplate) -> dict[str, Any]:
    """The regulariser, weights of earlier times, and the memory of embeddings' optimizer."""
    own = strategy.embedding_optimizer
    return {
        "regularizer": None if strategy.regularizer is None else strategy.regularizer.state_dict(),
        "movement": strategy.movement.state_dict(),
        "initial": strategy._initial,
        "embedding_optimizer": None if own is None else optimizer_state(own, strategy.model),
    }


def load_strategy_state(strategy: HypernetTemplate, state: Mapping[str, Any]) -> None:
    """Put :func:`strategy_state` into a strategy whose model has its state already."""
    regularizer = strategy.regularizer
    # In the middle of an experience most of it is that of its start, and the model has moved.
    if regularizer is not None and not is_same(regularizer.state_dict(), state["regularizer"]):
        regularizer.load_state_dict(state["regularizer"])
    strategy.movement.load_state_dict(state["movement"])
    strategy._initial = dict(state["initial"])
    # Between two experiences there is none that matters: each experience makes a new one.
    if strategy.embedding_optimizer is not None and state["embedding_optimizer"] is not None:
        load_optimizer_state(
            strategy.embedding_optimizer, strategy.model, state["embedding_optimizer"]
        )
