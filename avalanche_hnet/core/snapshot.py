"""A hypernetwork as it was."""

from __future__ import annotations

import torch
from torch import Tensor

from avalanche_hnet.core.hypernetworks import HyperNetwork


def snapshot(hypernetwork: HyperNetwork) -> dict[str, Tensor]:
    """Copies of all its parameters and buffers, by name."""
    tensors = dict(hypernetwork.named_parameters()) | dict(hypernetwork.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def is_unchanged(hypernetwork: HyperNetwork, before: dict[str, Tensor]) -> bool:
    """Whether all parameters and buffers have the values of the snapshot."""
    tensors = dict(hypernetwork.named_parameters()) | dict(hypernetwork.named_buffers())
    return tensors.keys() == before.keys() and all(
        tensor.device == before[name].device
        and tensor.dtype == before[name].dtype
        and torch.equal(tensor, before[name])
        for name, tensor in tensors.items()
    )
