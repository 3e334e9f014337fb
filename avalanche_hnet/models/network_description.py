"""Which network a state is of, in plain values that ``torch.load(weights_only=True)`` reads."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

from torch import Tensor, nn

from avalanche_hnet.core.hypernetworks.network import HyperNetwork

_KEYS = {"tasks", "trained", "has_trained", "units", "max_class_label"}


def description(hypernetwork: HyperNetwork, target: nn.Module) -> dict[str, Any]:
    """What a hypernetwork and what is left of its target must have in common with a state.

    Names and shapes are in order, since the places of generated weights follow from it. Of layers
    there are those of PyTorch, whose names do not change.

    Args:
        hypernetwork: generates the weights.
        target: the main network without them.
    """
    return {
        "chunk_size": hypernetwork.chunk_size,
        "embedding_dim": hypernetwork.embedding_dim,
        "generated": _shapes(hypernetwork.layout.shapes.items()),
        "not_generated": _shapes((n, t.shape) for n, t in _tensors(target)),
        "hypernetwork": _shapes((n, p.shape) for n, p in hypernetwork.shared_parameters().items()),
        "layers": _layers(target),
        "hypernetwork_layers": _layers(hypernetwork.trunk),
    }


def require_same_network(state: Any, own: Mapping[str, Any]) -> None:
    """Refuse a state of another network; warn of one that does not say.

    Args:
        state: the description that it has, or None, as older ones have.
        own: that of the model that would load it.

    Raises:
        ValueError: saying what differs.
    """
    if state is None:
        warnings.warn(
            "the state does not say of which network it is, as those of older versions: names, "
            "order and options were not compared; save it anew",
            UserWarning,
            stacklevel=2,
        )
        return
    if not isinstance(state, Mapping) or state.keys() != own.keys():
        got = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"state['network'] must have the keys {sorted(own)}, got {got}")
    differences = [_difference(key, state[key], own[key]) for key in own if state[key] != own[key]]
    if differences:
        raise ValueError(
            f"the state is that of another network or of other options: {'; '.join(differences)}"
        )


def check_extra_state(state: Any, multi_head: bool) -> None:
    """Refuse what is not the extra state of a :class:`HyperModel`.

    Args:
        state: to be loaded.
        multi_head: whether the model hands out output units.

    Raises:
        ValueError: naming the entry that is missing or of another kind.
    """
    if not isinstance(state, Mapping) or _KEYS - state.keys():
        got = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"the model's extra state must have the keys {sorted(_KEYS)}, got {got}")
    labels, trained, units = state["tasks"], state["trained"], state["units"]
    if not _are_integers(labels) or len({*labels}) != len(labels):
        raise ValueError(f"'tasks' of the state must be different task labels, got {labels}")
    if not _are_integers(trained) or {*trained} - {*labels}:
        raise ValueError(f"'trained' of the state must be some of its 'tasks', got {trained}")
    if not isinstance(state["has_trained"], bool):
        raise ValueError(f"'has_trained' of the state must be a bool, got {state['has_trained']}")
    is_list = isinstance(units, list | tuple)
    if not is_list or not all(_are_integers(unit) and len(unit) == 2 for unit in units):
        raise ValueError(f"'units' of the state must be pairs of task and class label, got {units}")
    if units and not multi_head and "network" not in state:
        raise ValueError("the state is that of a model with multi_head=True, but this one has not")
    if not _are_integers([state["max_class_label"]]):
        raise ValueError(
            f"'max_class_label' of the state must be an integer, got {state['max_class_label']}"
        )


def _are_integers(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(
        isinstance(value, Integral) and not isinstance(value, bool) for value in values
    )


def _shapes(named: Iterable[tuple[str, Iterable[int]]]) -> list[list[Any]]:
    return [[name, [int(size) for size in shape]] for name, shape in named]


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(n, t) for n, t in module.state_dict().items() if isinstance(t, Tensor)]


def _layers(module: nn.Module) -> list[list[str]]:
    return [
        [name, type(layer).__name__]
        for name, layer in module.named_modules()
        if type(layer).__module__.startswith("torch.nn.")
    ]


def _difference(key: str, state: Any, own: Any) -> str:
    """In words; of a list of names the first that differs."""
    if isinstance(own, list) and isinstance(state, list | tuple):
        place = next((i for i, (s, o) in enumerate(zip(state, own, strict=False)) if s != o), None)
        place = min(len(state), len(own)) if place is None else place
        there = state[place] if place < len(state) else "nothing"
        here = own[place] if place < len(own) else "nothing"
        return f"{key}[{place}] is {there} in the state and {here} in this model"
    return f"{key}={state!r} in the state and {own!r} in this model"
