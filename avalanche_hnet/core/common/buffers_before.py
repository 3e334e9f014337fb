"""Buffers as they were before a forward pass, for one whose loss is refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class BuffersBefore:
    """Copies of all buffers of some modules, such as running statistics, to be put back.

    One batch that is not finite makes running statistics NaN for good, even if no weight is
    updated with it.
    """

    def __init__(self) -> None:
        self._places: list[tuple[dict[str, Any], str]] = []
        self._before: list[tuple[Tensor, Tensor]] = []

    def watch(self, modules: Iterable[nn.Module]) -> None:
        """From now on, the buffers of these modules, of each once, and of all inside them."""
        found = {id(m): m._buffers for module in modules for m in module.modules()}
        places = [(kept, n) for kept in found.values() for n, b in kept.items() if b is not None]
        self._places, self._before = places, []

    def remember(self) -> None:
        """Keep what they are now."""
        if self._places:
            tensors = [kept[name] for kept, name in self._places]
            self._before = [(tensor, tensor.detach().clone()) for tensor in tensors]

    def forget(self) -> None:
        """What has happened since stays."""
        self._before = []

    @contextmanager
    def put_back_on_error(self) -> Iterator[None]:
        """Put back what was remembered last if what is inside fails."""
        try:
            yield
        except BaseException:
            self._put_back()
            raise

    @torch.no_grad()
    def _put_back(self) -> None:
        if not self._before:
            return
        for (kept, name), (tensor, values) in zip(self._places, self._before, strict=True):
            tensor.copy_(values)
            kept[name] = tensor  # some modules put others in their place
        self._before = []

    def __getstate__(self) -> dict[str, Any]:
        return BuffersBefore().__dict__
