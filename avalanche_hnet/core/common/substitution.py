"""A model with other tensors in place of its parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def substituted(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Tensors in place of the parameters of these names inside, wherever a parameter is used.

    ``torch.func.functional_call`` does not put back a parameter of a module that has two names.

    Args:
        model: as it was afterwards.
        tensors: by the names of ``model.named_parameters()``; what is missing stays.
    """
    by_id = {id(p): tensors[n] for n, p in model.named_parameters() if n in tensors}
    places = [
        (module._parameters, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if id(parameter) in by_id
    ]
    try:
        for parameters, name, parameter in places:
            parameters[name] = by_id[id(parameter)]  # type: ignore[assignment]
        yield
    finally:
        for parameters, name, parameter in places:
            parameters[name] = parameter
