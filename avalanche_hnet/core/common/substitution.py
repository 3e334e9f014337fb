"""A model with other tensors in place of its parameters and buffers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def places(model: nn.Module) -> dict[str, Tensor]:
    """What is kept in each place of a model's modules, parameters first, by name.

    A tensor that is kept in several places (tied weights) has a name for each, but a module of
    several names has one: ``torch.func.functional_call`` with two names for one place does not
    put back what was there.
    """
    return {
        f"{prefix}.{name}".lstrip("."): tensor
        for kind in ("_parameters", "_buffers")
        for prefix, module in model.named_modules()
        for name, tensor in getattr(module, kind).items()
        if tensor is not None
    }


def _kept(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    return module._parameters, module._buffers


@contextmanager
def substituted(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Tensors in place of the parameters and buffers of these names, wherever they are used.

    Args:
        model: as it was afterwards.
        tensors: by the names of ``model.named_parameters()`` and ``model.named_buffers()``; what
            is missing stays.
    """
    by_id = {id(t): tensors[n] for n, t in places(model).items() if n in tensors}
    found = [
        (kept, name, tensor)
        for module in model.modules()
        for kept in _kept(module)
        for name, tensor in kept.items()
        if id(tensor) in by_id
    ]
    try:
        for kept, name, tensor in found:
            kept[name] = by_id[id(tensor)]
        yield
    finally:
        for kept, name, tensor in found:
            kept[name] = tensor
