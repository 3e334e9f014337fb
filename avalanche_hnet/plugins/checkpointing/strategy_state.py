"""All that the rest of a run depends on: a strategy with its model, optimizer and plugins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from avalanche.benchmarks import OnlineCLExperience
from avalanche.training.templates import SupervisedTemplate

from avalanche_hnet.core.common.random_states import random_state, set_random_state
from avalanche_hnet.plugins.checkpointing.configuration import OF_TEMPLATES
from avalanche_hnet.plugins.checkpointing.kinds import (
    full_name,
    kind_among_bases,
    kind_of,
    why_refused,
)
from avalanche_hnet.plugins.checkpointing.model_state import load_model_state, model_state
from avalanche_hnet.plugins.checkpointing.optimizer_state import (
    load_optimizer_state,
    optimizer_state,
)
from avalanche_hnet.plugins.checkpointing.plain import (
    UnsavableError,
    from_plain,
    has_protocol,
    to_plain,
)


def strategy_state(strategy: SupervisedTemplate) -> dict[str, Any]:
    """In plain values.

    Raises:
        ValueError: naming the plugin or attribute whose state cannot be saved.
    """
    try:
        return {
            "model": model_state(strategy.model),
            "optimizer": optimizer_state(
                strategy.optimizer, strategy.model, strategy.optimized_param_id
            ),
            "stops": strategy._stop_training,
            "strategy": _own_state(strategy),
            "plugins": [_plugin_state(plugin) for plugin in strategy.plugins],
            "random": random_state(),
        }
    except UnsavableError as error:
        raise ValueError(
            f"CheckpointPlugin cannot save the state of this strategy: {error}. Give its class the "
            "methods state_dict and load_state_dict, or name it with register_checkpoint_state; "
            "or leave it out"
        ) from None


def load_strategy_state(strategy: SupervisedTemplate, state: Mapping[str, Any]) -> None:
    """Put :func:`strategy_state` into a strategy whose model has grown in the same way."""
    load_model_state(strategy.model, state["model"])
    strategy.optimized_param_id = load_optimizer_state(
        strategy.optimizer, strategy.model, state["optimizer"]
    )
    strategy._stop_training = state["stops"]
    _load_own_state(strategy, state["strategy"])
    for plugin, of_plugin in zip(strategy.plugins, state["plugins"], strict=True):
        from_plain(of_plugin, plugin)
    set_random_state(state["random"])


def refuse_online(experience: Any) -> None:
    """Refuse pieces of an experience, which have no number that tells them apart.

    Raises:
        ValueError: for such a piece.
    """
    if isinstance(experience, OnlineCLExperience):
        raise ValueError(
            "CheckpointPlugin does not go with online streams (split_online_stream), whose pieces "
            "of an experience it cannot tell apart; leave it out"
        )


def _plugin_state(plugin: object) -> Any:
    name = type(plugin).__name__
    if why := why_refused(plugin):
        raise UnsavableError(f"the plugin {name}, {why}")
    if kind_of(plugin) is None and not has_protocol(plugin) and not vars(plugin):
        return {}  # it has no state
    return to_plain(plugin, f"the plugin {name}")


def _own_state(strategy: SupervisedTemplate) -> Any:
    if why := why_refused(strategy):
        raise UnsavableError(f"the strategy {type(strategy).__name__}, {why}")
    registered = kind_among_bases(type(strategy))
    skip = OF_TEMPLATES | (set() if registered is None else registered.skip)
    own = {
        name: value
        for name, value in vars(strategy).items()
        if name not in skip
        and not (callable(value) and hasattr(type(strategy), name))  # a method that is watched
        and not _is_plugin(strategy, value)
    }
    save = None if registered is None else registered.save
    return {
        "registered": None if save is None else to_plain(save(strategy), "the strategy"),
        "attributes": to_plain(own, f"{full_name(type(strategy))}"),
    }


def _load_own_state(strategy: SupervisedTemplate, state: Mapping[str, Any]) -> None:
    registered = kind_among_bases(type(strategy))
    for name, value in state["attributes"].items():
        vars(strategy)[name] = from_plain(value, vars(strategy).get(name))
    if registered is not None and registered.load is not None:
        registered.load(strategy, from_plain(state["registered"]))


def _is_plugin(strategy: SupervisedTemplate, value: object) -> bool:
    return any(value is plugin for plugin in strategy.plugins)
