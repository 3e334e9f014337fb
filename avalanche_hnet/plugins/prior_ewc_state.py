"""What a :class:`PriorEWCPlugin` carries on, for :class:`CheckpointPlugin`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avalanche_hnet.plugins.prior_ewc import PriorEWCPlugin


def plugin_state(plugin: PriorEWCPlugin) -> dict[str, Any]:
    """The posterior, random numbers, and what has been warned of.

    In the middle of an experience also the heads that nothing has moved yet.
    """
    experience = plugin._experience
    penalty = None if experience is None else experience.penalty
    return {
        "posterior": plugin.posterior.state_dict(),
        "generator": None if plugin.generator is None else plugin.generator.get_state(),
        "dormant": None if penalty is None else sorted(penalty.dormant),
        "warned": [
            plugin._has_warned_of_steps,
            plugin._has_warned_of_prior,
            plugin._has_warned_of_layers,
        ],
        "checks": plugin._checks.state_dict(),
    }


def load_plugin_state(plugin: PriorEWCPlugin, state: Mapping[str, Any]) -> None:
    """Put :func:`plugin_state` into a plugin with the same options."""
    if plugin._experience is None:  # in the middle of an experience it is that of its start
        plugin.posterior.load_state_dict(state["posterior"])
    if plugin.generator is not None:
        plugin.generator.set_state(state["generator"])
    if plugin._experience is not None:
        dormant = None if state["dormant"] is None else frozenset(state["dormant"])
        plugin._experience = replace(plugin._experience, penalty=None, dormant=dormant)
    (
        plugin._has_warned_of_steps,
        plugin._has_warned_of_prior,
        plugin._has_warned_of_layers,
    ) = state["warned"]
    plugin._checks.load_state_dict(state["checks"])
