"""A model in another floating-point type for a while."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

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
    """The same in ``dtype``, if it is coarser."""
    return x.to(dtype) if is_coarser(x, dtype) else x


def is_coarser(values: Tensor | Samples, dtype: torch.dtype) -> bool:
    """Whether these are floating-point numbers with fewer digits."""
    if values.dtype == dtype or not values.is_floating_point():
        return False
    return torch.finfo(values.dtype).eps > torch.finfo(dtype).eps
