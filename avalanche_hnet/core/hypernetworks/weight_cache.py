"""Generated weights, kept as long as nothing that they depend on has changed."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from avalanche_hnet.core.hypernetworks.network import HyperNetwork

# At most so many weights are kept, of the groups of tasks used last (256 MiB of float32).
_BUDGET = 2**26


class WeightCache:
    """Weights that a hypernetwork in evaluation mode generates without gradients.

    The values of all its parameters and buffers are compared with those at the time of generation,
    so that no way of changing them goes unnoticed (exchanging its modules does). That costs one
    pass over the hypernetwork, which with chunks is much less than generating.
    """

    def __init__(self) -> None:
        self._before: dict[str, Tensor] = {}
        self._weights: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    @torch.no_grad()
    def get(self, hypernetwork: HyperNetwork, tasks: list[int]) -> Tensor:
        """Weights (T, W) of T tasks, not to be changed in place."""
        if not _is_unchanged(hypernetwork, self._before):
            self.clear()
            self._before = _snapshot(hypernetwork)
        group = tuple(tasks)
        if group not in self._weights:
            weights = hypernetwork(tasks)
            if len(group) > 1 and weights.numel() > _BUDGET:
                return weights
            self._weights[group] = weights.clone()  # without the rest of the last chunk
        self._weights.move_to_end(group)
        while len(self._weights) > 1 and sum(w.numel() for w in self._weights.values()) > _BUDGET:
            self._weights.popitem(last=False)
        return self._weights[group]

    def clear(self) -> None:
        """Keep nothing."""
        self._before = {}
        self._weights.clear()

    def __getstate__(self) -> dict[str, Any]:
        return WeightCache().__dict__


def _snapshot(hypernetwork: HyperNetwork) -> dict[str, Tensor]:
    """Copies of all its parameters and buffers, by name."""
    tensors = dict(hypernetwork.named_parameters()) | dict(hypernetwork.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _is_unchanged(hypernetwork: HyperNetwork, before: dict[str, Tensor]) -> bool:
    """Whether all parameters and buffers have the values of the snapshot."""
    tensors = dict(hypernetwork.named_parameters()) | dict(hypernetwork.named_buffers())
    return tensors.keys() == before.keys() and all(
        tensor.device == before[name].device
        and tensor.dtype == before[name].dtype
        and torch.equal(tensor, before[name])
        for name, tensor in tensors.items()
    )
