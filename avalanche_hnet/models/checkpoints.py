"""Whether a network computes parts of itself again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

_CHECKPOINT = "torch.utils.checkpoint"

REFUSAL = (
    "a {} of the target was called again after its generated weights had been taken back. If it "
    "is for torch.utils.checkpoint, pass use_reentrant=False, call checkpoint in a module of the "
    "target, and give it modules that are attributes of that module, or functions that use them"
)


def may_checkpoint(network: nn.Module) -> bool:
    """Whether the code of a network's modules mentions checkpoints.

    What it does not find, such as a checkpoint in an object that is no module, runs as if there
    were none.
    """
    seen: set[int] = set()
    functions = [f for module in network.modules() for f in _functions(module)]
    return any(_mentions(function, seen) for function in functions)


def _functions(module: nn.Module) -> Iterator[Any]:
    """Functions of a module and its class, but PyTorch's layers, which have no checkpoints."""
    yield from vars(module).values()
    for base in type(module).__mro__:
        if not base.__module__.startswith("torch.nn."):
            yield from vars(base).values()


def _mentions(value: Any, seen: set[int]) -> bool:
    """Whether a value is, or is a function that uses, something called a checkpoint."""
    if isinstance(value, partial):
        value = value.func
    elif isinstance(value, (property, staticmethod, classmethod)):
        value = value.fget if isinstance(value, property) else value.__func__
    elif isinstance(value, MethodType):
        value = value.__func__
    if isinstance(value, ModuleType):
        return value.__name__ == _CHECKPOINT
    if getattr(value, "__module__", None) == _CHECKPOINT:
        return True
    if not isinstance(value, FunctionType) or id(value) in seen:
        return False
    seen.add(id(value))
    names = {*_names(value.__code__)}
    if any("checkpoint" in name.lower() for name in names):
        return True
    if (value.__module__ or "").startswith("torch."):
        return False
    used = [value.__globals__.get(name) for name in names] + _closed_over(value)
    return any(_mentions(other, seen) for other in used)


def _names(code: CodeType) -> Iterator[str]:
    """Of globals and attributes that the code and the functions in it use."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _closed_over(function: FunctionType) -> list[Any]:
    cells = function.__closure__ or ()
    empty = CellType()
    return [cell.cell_contents for cell in cells if cell != empty]
