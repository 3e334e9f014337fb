"""The kinds of objects whose state a checkpoint can hold."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """How the state of a class's objects is saved and loaded.

    Attributes:
        save: the state of an object; None: its attributes are its state.
        load: put such a state into an object.
        skip: attributes that are no state.
    """

    save: Callable[[Any], Any] | None = None
    load: Callable[[Any, Any], None] | None = None
    skip: frozenset[str] = frozenset()


_KINDS: dict[type, Kind] = {}
_REFUSED: dict[type, str] = {}


def register_checkpoint_state(
    kind: type,
    *,
    save: Callable[[Any], Any] | None = None,
    load: Callable[[Any, Any], None] | None = None,
    skip: Collection[str] = (),
) -> None:
    """Tell :class:`CheckpointPlugin` how to save the state of a class of plugins or metrics.

    Classes with the methods ``state_dict`` and ``load_state_dict`` need not be registered, nor
    those without attributes. Subclasses of a registered class have to be registered as well.

    Args:
        kind: the class.
        save: returns the state of an object: tensors, numbers, strings, and lists and dictionaries
            of them. By default all attributes are the state, and have to be of these types, or
            objects of other registered classes.
        load: puts what ``save`` returned into an object that was made by the same script.
        skip: names of attributes that are no state, such as open files.

    Raises:
        TypeError: if ``kind`` is no class.
        ValueError: if only one of ``save`` and ``load`` is given.
    """
    if not isinstance(kind, type):
        raise TypeError(f"kind must be a class, got {kind!r}")
    if (save is None) != (load is None):
        raise ValueError("save and load must be given together, got one of them")
    _KINDS[kind] = Kind(save, load, frozenset(skip))


def refuse_checkpoint_state(kind: type, why: str) -> None:
    """Have the objects of a class, and of its subclasses, refused with a reason."""
    _REFUSED[kind] = why


def kind_of(value: object) -> Kind | None:
    """The kind of an object; None if there is none."""
    return _KINDS.get(type(value))


def kind_among_bases(kind: type) -> Kind | None:
    """The kind of a class, or of the first of its bases that has one."""
    return next((_KINDS[base] for base in kind.__mro__ if base in _KINDS), None)


def why_refused(value: object) -> str | None:
    """Why objects of this class are refused; None if they are not."""
    return next((_REFUSED[kind] for kind in type(value).__mro__ if kind in _REFUSED), None)


def class_named(name: str) -> type | None:
    """The registered class of this full name."""
    return next((kind for kind in _KINDS if full_name(kind) == name), None)


def full_name(kind: type) -> str:
    """Of a class, with its module."""
    return f"{kind.__module__}.{kind.__qualname__}"
