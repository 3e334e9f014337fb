"""Objects as plain values and tensors, which ``torch.load(weights_only=True)`` reads, and back."""

from __future__ import annotations

import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avalanche_hnet.plugins.checkpointing.kinds import Kind, class_named, full_name, kind_of

_TAG = "<kind>"
_PLAIN = (type(None), bool, int, float, str)
_FUNCTIONS = (
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.MethodWrapperType,
    partial,
)
_DEPTH = 40
_LONG = 32  # so many numbers take less room and time in a tensor


class UnsavableError(Exception):
    """There is something whose state cannot be saved."""


def to_plain(value: Any, where: str = "", depth: int = 0) -> Any:
    """Plain values for anything that is known.

    Functions and classes are not saved: the script makes them again.

    Args:
        value: to be saved.
        where: what it is, for errors.
        depth: how deep it is in something else.

    Raises:
        UnsavableError: naming what cannot be saved.
    """
    if depth > _DEPTH:
        raise UnsavableError(f"{where} goes round in a circle")

    def inner(entry: Any, name: object) -> Any:
        return to_plain(entry, f"{where}.{name}" if where else str(name), depth + 1)

    if type(value) in _PLAIN:
        return value
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, np.generic | np.ndarray) and value.dtype.kind in "biuf":
        # A copy: a tensor may not share memory that NumPy forbids to write.
        return {_TAG: "numpy", "values": torch.tensor(np.array(value)), "array": np.ndim(value) > 0}
    if isinstance(value, torch.Generator):
        return {_TAG: "generator", "state": value.get_state(), "device": str(value.device)}
    if isinstance(value, torch.Size):
        return {_TAG: "size", "items": list(value)}
    if isinstance(value, torch.device):
        return {_TAG: "device", "name": str(value)}
    if isinstance(value, torch.dtype):
        return {_TAG: "dtype", "name": str(value).removeprefix("torch.")}
    if type(value) is list and len(value) >= _LONG and (number := _number_type(value)):
        return {_TAG: "numbers", "values": torch.tensor(value, dtype=number)}
    if type(value) in (list, tuple):
        return type(value)(inner(entry, number) for number, entry in enumerate(value))
    if type(value) in (set, frozenset, deque):
        items = [inner(entry, "item") for entry in value]
        limit = value.maxlen if isinstance(value, deque) else None
        return {_TAG: type(value).__name__, "items": items, "maxlen": limit}
    if type(value) in (dict, OrderedDict, defaultdict):
        if type(value) is not defaultdict and all(type(k) is str and k != _TAG for k in value):
            return {key: inner(entry, key) for key, entry in value.items()}
        pairs = [[inner(k, "key"), inner(entry, k)] for k, entry in value.items()]
        return {_TAG: "dict", "items": pairs, "default": type(value) is defaultdict}
    if isinstance(value, _FUNCTIONS):
        return {_TAG: "as it is"}
    kind = kind_of(value)
    name = full_name(type(value))
    if kind is not None and kind.save is not None:
        return {_TAG: "state", "class": name, "state": inner(kind.save(value), "state")}
    if kind is not None:
        attributes = {n: inner(v, n) for n, v in vars(value).items() if n not in kind.skip}
        return {_TAG: "object", "class": name, "attributes": attributes}
    if not isinstance(value, nn.Module) and has_protocol(value):
        return {_TAG: "state", "class": name, "state": inner(value.state_dict(), "state")}
    raise UnsavableError(f"{where} is a {name}, whose state is not known")


def from_plain(plain: Any, existing: Any = None) -> Any:
    """The reverse of :func:`to_plain`.

    Objects are not made anew where the script has made them: their state is put into them.

    Args:
        plain: what it returned.
        existing: what the script has at this place.

    Raises:
        ValueError: if the script has something else there.
    """
    if isinstance(plain, list | tuple):
        old = existing if isinstance(existing, list | tuple) else ()
        padded = [*old, *[None] * (len(plain) - len(old))]
        made = [from_plain(entry, was) for entry, was in zip(plain, padded, strict=False)]
        if isinstance(plain, list) and isinstance(existing, list):
            existing[:] = made
            return existing
        return type(plain)(made)
    if not isinstance(plain, dict):
        return plain
    kind = plain.get(_TAG)
    if kind is None or kind == "dict":
        items = plain.items() if kind is None else [(from_plain(k), v) for k, v in plain["items"]]
        if kind == "dict" and plain["default"] and not isinstance(existing, defaultdict):
            raise ValueError("the checkpoint has a defaultdict where this script has none")
        return _filled(dict(items), existing)
    if kind == "numbers":
        return from_plain(plain["values"].tolist(), existing)
    if kind in ("set", "frozenset"):
        entries = [from_plain(entry) for entry in plain["items"]]
        return set(entries) if kind == "set" else frozenset(entries)
    if kind == "deque":
        return deque((from_plain(entry) for entry in plain["items"]), plain["maxlen"])
    if kind == "object":
        return _object(plain, existing)
    if kind == "state":
        return _with_state(plain, existing)
    return _value(kind, plain, existing)


def has_protocol(value: object) -> bool:
    """Whether an object has ``state_dict`` and ``load_state_dict``."""
    methods = (getattr(type(value), name, None) for name in ("state_dict", "load_state_dict"))
    return all(callable(method) for method in methods)


def _number_type(values: list[Any]) -> torch.dtype | None:
    kinds = {type(value) for value in values}
    if kinds == {float}:
        return torch.float64
    small = kinds == {int} and all(-(2**63) <= value < 2**63 for value in values)
    return torch.int64 if small else None


def _tensor(tensor: Tensor) -> Any:
    value = tensor.detach()
    if value.untyped_storage().nbytes() != value.nbytes:
        value = value.clone()  # of a view the whole storage would be saved
    return value if value.is_cpu else {_TAG: "tensor", "values": value, "device": str(value.device)}


def _filled(items: dict[Any, Any], existing: Any) -> Any:
    old = existing if isinstance(existing, Mapping) else {}
    made = {}
    for key, entry in items.items():
        if key not in old and isinstance(entry, dict) and entry.get(_TAG) == "as it is":
            continue
        was = old.get(key)
        if was is None and isinstance(old, defaultdict) and old.default_factory is not None:
            was = old.default_factory()
        made[key] = from_plain(entry, was)
    if isinstance(existing, dict):
        existing.clear()
        existing.update(made)
        return existing
    return made


def _object(plain: Mapping[str, Any], existing: Any) -> Any:
    known = class_named(plain["class"])
    if known is None:
        raise ValueError(f"the checkpoint has a {plain['class']}, which is not known here")
    made = existing if type(existing) is known else _made(known)
    skip = (kind_of(made) or Kind()).skip
    for name in [n for n in vars(made) if n not in plain["attributes"] and n not in skip]:
        delattr(made, name)
    for name, entry in plain["attributes"].items():
        vars(made)[name] = from_plain(entry, vars(made).get(name))
    return made


def _made(kind: type) -> Any:
    """An object as its class makes it by default, or else without anything."""
    try:
        return kind()
    except TypeError:
        return object.__new__(kind)


def _with_state(plain: Mapping[str, Any], existing: Any) -> Any:
    kind = kind_of(existing)
    if existing is None or full_name(type(existing)) != plain["class"]:
        raise ValueError(
            f"the checkpoint has a {plain['class']} where this script has "
            f"{'nothing' if existing is None else full_name(type(existing))}"
        )
    state = from_plain(plain["state"])
    if kind is not None and kind.load is not None:
        kind.load(existing, state)
    else:
        existing.load_state_dict(state)
    return existing


def _value(kind: Any, plain: Mapping[str, Any], existing: Any) -> Any:
    if kind == "as it is":
        return existing
    if kind == "tensor":
        return plain["values"].to(plain["device"])
    if kind == "numpy":
        values = plain["values"].numpy()
        return values if plain["array"] else values[()]
    if kind == "generator":
        made = torch.Generator(plain["device"]) if existing is None else existing
        made.set_state(plain["state"])
        return made
    if kind == "size":
        return torch.Size(plain["items"])
    if kind == "device":
        return torch.device(plain["name"])
    if kind == "dtype":
        return getattr(torch, plain["name"])
    raise ValueError(f"the checkpoint has a value of the unknown kind {kind!r}")
