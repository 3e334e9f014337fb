"""A model in another floating-point type for a while."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from avalanche_hnet.core.common.samples import Samples


@contextmanager
def in_precision(modules: Collection[nn.Module], dtype: torch.dtype) -> Iterator[None]:
    """Parameters and buffers that are coarser than ``dtype`` are in it inside, their own after."""
    parameters = [
        (parameter, parameter.data)
        for module in modules
        for parameter in module._parameters.values()
        if parameter is not None and is_coarser(parameter, dtype)
    ]
    buffers = [
        (module, name, buffer)
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None and is_coarser(buffer, dtype)
    ]
    try:
        for parameter, data in parameters:
            parameter.data = data.to(dtype)
        for module, name, buffer in buffers:
            module._buffers[name] = buffer.to(dtype)
        yield
    finally:
        for parameter, data in parameters:
            parameter.data = data
        for module, name, buffer in buffers:
            module._buffers[name] = buffer


def converted(x: Tensor | Samples, dtype: torch.dtype) -> Tensor | Samples:
    """The same in ``dtype``, as far as it is coarser."""
    if isinstance(x, Samples):
        return x.map(partial(_converted, dtype=dtype))
    return _converted(x, dtype)


def coarsest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The floating-point type of the fewest digits."""
    return max((d for d in dtypes if d.is_floating_point), key=lambda d: torch.finfo(d).eps)


def _converted(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype) if is_coarser(values, dtype) else values


def is_coarser(values: Tensor, dtype: torch.dtype) -> bool:
    """Whether these are floating-point numbers with fewer digits."""
    if values.dtype == dtype or not values.is_floating_point():
        return False
    return torch.finfo(values.dtype).eps > torch.finfo(dtype).eps
