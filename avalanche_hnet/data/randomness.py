"""Finds data sets whose samples are not the same each time they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import Lambda

from avalanche_hnet.core.common.evaluation import random_numbers_kept
from avalanche_hnet.data.structure import WRAPPERS, Structure, from_torchvision
from avalanche_hnet.data.unkeepable import UnkeepableError

# Of torchvision's random transforms, those whose names do not begin with Random.
_RANDOM = {
    "AugMix",
    "AutoAugment",
    "ColorJitter",
    "CutMix",
    "ElasticTransform",
    "GaussianBlur",
    "GaussianNoise",
    "JPEG",
    "MixUp",
    "RandAugment",
    "ScaleJitter",
    "TrivialAugmentWide",
}
_N_TRIED = 8


def require_deterministic(
    dataset: Any, collate: Callable[[Any], Any], structure: Structure, allowed: Sequence[type]
) -> None:
    """Refuse data whose samples would change from epoch to epoch.

    Random transforms of torchvision are known by name. Others give themselves away: the first
    samples are read twice, and must be the same and take no random numbers. (What draws from a
    generator of its own, and does nothing to most samples, goes unnoticed.) A class that is
    ``allowed`` vouches for all data sets that have an instance of it.

    Raises:
        UnkeepableError: unless what is random is an instance of one of the classes ``allowed``.
    """
    remedy = (
        "in memory they would be frozen, the same in every epoch. Leave InMemoryPlugin out (of a "
        "HypernetTemplate: in_memory=False), or, if a transform always does the same, name its "
        "class: InMemoryPlugin(deterministic=[...])"
    )
    known = [
        transform
        for transform in structure.transforms
        if from_torchvision(transform) and _is_random(transform)
    ]
    if unwanted := sorted({type(t).__name__ for t in known if not isinstance(t, tuple(allowed))}):
        raise UnkeepableError(f"the data have random transforms, {', '.join(unwanted)}: {remedy}")

    of_users = [t for t in structure.transforms if isinstance(t, Lambda) or not from_torchvision(t)]
    unknown = [t for t in of_users if type(t) not in WRAPPERS] + structure.sources
    if any(isinstance(t, tuple(allowed)) for t in [*known, *unknown]):
        return
    with random_numbers_kept() as taken:
        readings = [
            collate([dataset[i] for i in range(min(_N_TRIED, len(dataset)))]) for _ in range(2)
        ]
    if taken or not _same_batches(*readings):
        names = ", ".join(sorted({_name(t) for t in unknown}))
        raise UnkeepableError(
            f"the data are random: samples {'take random numbers' if taken else 'change'} when "
            f"they are read; {remedy}. One of these does it: {names}"
        )


def _is_random(transform: object) -> bool:
    name = type(transform).__name__
    return name.startswith("Random") or name in _RANDOM


def _same_batches(first: Any, second: Any) -> bool:
    """Whether all tensors agree; batches of anything else are not kept."""
    if not (isinstance(first, (list, tuple)) and isinstance(second, (list, tuple))):
        return True
    return len(first) == len(second) and all(
        same_tensors(a, b)
        for a, b in zip(first, second, strict=True)
        if isinstance(a, Tensor) and isinstance(b, Tensor)
    )


def same_tensors(first: Tensor, second: Tensor) -> bool:
    """Whether they have the same shape, type and values, NaN being the same as NaN."""
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return False
    return torch.equal(first, second) or (
        torch.equal(first.isnan(), second.isnan())
        and torch.equal(first.nan_to_num(), second.nan_to_num())
    )


def _name(thing: object) -> str:
    return getattr(thing, "__qualname__", type(thing).__name__)
