"""Tensors in structures: mappings, tuples, lists and dataclasses, one in another."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from torch import Tensor


def map_tensors(function: Callable[[Tensor], Any], structure: Any) -> Any:
    """The structure with ``function`` of each tensor in its place; all else is kept as it is.

    Kinds are kept, too: named tuples, subclasses of ``dict`` and ``UserDict`` (what tokenizers
    return), dataclasses (what their models return).
    """
    if isinstance(structure, Tensor):
        return function(structure)
    if isinstance(structure, Mapping):
        return _with_items(structure, {k: map_tensors(function, structure[k]) for k in structure})
    if isinstance(structure, (tuple, list)):
        values = [map_tensors(function, value) for value in structure]
        return _sequence(structure, values)
    if _is_dataclass_value(structure):
        names = [f.name for f in dataclasses.fields(structure) if hasattr(structure, f.name)]
        return _with_fields(
            structure, {n: map_tensors(function, getattr(structure, n)) for n in names}
        )
    return structure


def tensors_in(structure: Any) -> list[Tensor]:
    """All tensors of a structure, in the order of :func:`map_tensors`."""
    tensors: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    map_tensors(keep, structure)
    return tensors


def with_tensors(structure: Any, tensors: list[Any]) -> Any:
    """The structure with others in place of its tensors, in the order of :func:`tensors_in`."""
    others = iter(tensors)
    return map_tensors(lambda _: next(others), structure)


def with_value(structure: Any, key: Any, value: Any) -> Any:
    """A copy with another value at a key of a mapping, an index of a sequence or an attribute."""
    if isinstance(structure, Mapping):
        return _with_items(structure, {key: value})
    if isinstance(structure, (tuple, list)):
        position = key if isinstance(key, int) else structure._fields.index(key)  # type: ignore[union-attr]
        return _sequence(structure, [*structure[:position], value, *structure[position + 1 :]])
    return _with_fields(structure, {key: value})


def described(value: Any) -> str:
    """The kind of a value, with the keys of a mapping, for messages."""
    name = type(value).__name__
    kind = f"an {name}" if name[0] in "AEIOUaeiou" else f"a {name}"
    if isinstance(value, Mapping):
        return f"{kind} with the keys {[*value]}"
    if isinstance(value, (tuple, list)):
        return f"{kind} of {[type(v).__name__ for v in value]}"
    return kind


def _with_items(mapping: Mapping[Any, Any], items: Mapping[Any, Any]) -> Any:
    if not isinstance(mapping, MutableMapping):
        return {**mapping, **items}
    changed = copy.copy(mapping)
    for key, value in items.items():
        changed[key] = value
    return changed


def _sequence(like: tuple[Any, ...] | list[Any], values: list[Any]) -> Any:
    return like._make(values) if hasattr(like, "_make") else type(like)(values)


def _with_fields(value: Any, fields: Mapping[str, Any]) -> Any:
    changed = copy.copy(value)
    for name, field in fields.items():
        object.__setattr__(changed, name, field)  # the dataclass may be frozen
    return changed


def _is_dataclass_value(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)
