"""What a data set is made of, below Avalanche's and PyTorch's wrappers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from enum import Enum
from functools import partial
from inspect import ismethod
from typing import Any

import numpy as np
import torch
import torchvision.transforms as v1
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute, TransformGroups
from avalanche.benchmarks.utils.flat_data import ConstantSequence, FlatData
from avalanche.benchmarks.utils.transforms import (
    MultiParamCompose,
    MultiParamTransformCallable,
    TupleTransform,
)
from torch import nn
from torch.utils.data import ConcatDataset, Subset
from torchvision.transforms import v2


class Structure:
    """The sources that samples come from and the transforms on their way.

    Args:
        dataset: any data set; wrappers of Avalanche and PyTorch are looked into.
        collate: makes batches of its samples.

    Attributes:
        key: equal for data sets with the same samples in the same order, as far as can be told
            without reading them. It holds for as long as one of them is kept alive.
        sources: innermost data sets.
        transforms: all of them, and containers such as ``Compose``.
    """

    def __init__(self, dataset: Any, collate: Callable[[Any], Any]) -> None:
        self.sources: list[Any] = []
        self.transforms: list[Any] = []
        self.key: Hashable = (self._visit(dataset), _identity(collate))

    def _visit(self, dataset: Any, group: str | None = None) -> Hashable:
        if not _reads_like_its_base(dataset):
            return self._source(dataset)
        if isinstance(dataset, AvalancheDataset):
            attributes = dataset._data_attributes.values()
            shown = tuple(_values(a) for a in attributes if a.use_in_getitem)
            return self._visit(dataset._flat_data), shown
        if isinstance(dataset, FlatData):
            # The outermost decides which group of transforms is used all the way down.
            groups: tuple[TransformGroups, ...] = tuple(
                getattr(dataset, name)
                for name in ("_frozen_transform_groups", "_transform_groups")
                if hasattr(dataset, name)
            )
            group = group or (groups[-1].current_group if groups else None)
            inner = self._several(dataset._datasets, dataset._indices, group)
            applied = tuple(self._transform(g[group]) for g in groups if g[group] is not None)
            return (inner, applied) if applied else inner
        if isinstance(dataset, ConcatDataset):
            return self._several(dataset.datasets, None, None)
        if isinstance(dataset, Subset):
            return self._several([dataset.dataset], dataset.indices, None)
        return self._source(dataset)

    def _source(self, dataset: Any) -> Hashable:
        self.sources.append(dataset)
        return id(dataset), tuple(self._transform(t) for t in _inner(dataset))

    def _several(
        self, datasets: Iterable[Any], indices: Iterable[int] | None, group: str | None
    ) -> Hashable:
        parts = list(datasets)
        keys = tuple(self._visit(part, group) for part in parts)
        if indices is not None:
            chosen = np.fromiter(indices, np.int64)
            if not np.array_equal(chosen, np.arange(sum(len(part) for part in parts))):
                return keys, chosen.tobytes()
        return keys[0] if len(keys) == 1 else keys

    def _transform(self, transform: Any) -> Hashable:
        if transform is None:
            return None
        self.transforms.append(transform)
        inner = tuple(self._transform(t) for t in _inner(transform))
        return (type(transform), inner) if type(transform) in _PLAIN else _identity(transform)


def _reads_like_its_base(dataset: Any) -> bool:
    """Whether a wrapper's samples are those of what it wraps."""
    for base in (AvalancheDataset, ConcatDataset, Subset):
        if isinstance(dataset, base):
            kind: Any = type(dataset)
            return all(
                getattr(kind, name, None) == getattr(base, name, None)
                for name in ("__getitem__", "__getitems__")
            )
    return True


def from_torchvision(transform: object) -> bool:
    """Whether it is a transform of torchvision's own."""
    return type(transform).__module__.startswith("torchvision.transforms")


def _inner(owner: Any) -> Iterator[Any]:
    """The transforms of a container, or of a data set, that applies them one after the other."""
    if isinstance(owner, nn.Sequential):
        yield from owner
        return
    several = getattr(owner, "transforms", None)
    if isinstance(several, Iterable):
        yield from several
    elif callable(several) and not ismethod(several):
        yield several
    else:
        for name in ("transform", "target_transform"):
            transform = getattr(owner, name, None)
            if callable(transform) and not ismethod(transform):
                yield transform


def _identity(function: Any) -> Hashable:
    """Equal for two of torchvision's transforms with the same arguments."""
    if from_torchvision(function):
        arguments = {n: v for n, v in vars(function).items() if n not in _OF_MODULES}
        try:
            return type(function), _frozen(arguments)
        except TypeError:
            pass
    return id(function)


_OF_MODULES = vars(nn.Module()).keys()
# Containers that do nothing but call what they contain.
_PLAIN = {v1.Compose, v2.Compose, nn.Sequential, TupleTransform, MultiParamCompose}
# What Avalanche puts around the transforms of users.
WRAPPERS = {TupleTransform, MultiParamCompose, MultiParamTransformCallable, partial}


def _frozen(value: Any) -> Hashable:
    if isinstance(value, dict):
        return tuple((name, _frozen(v)) for name, v in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(v) for v in value)
    if value is None or isinstance(value, (bool, int, float, str, Enum, torch.dtype)):
        return value
    raise TypeError


def _values(attribute: DataAttribute) -> Hashable:
    """A column that Avalanche adds to the samples, such as the task label."""
    data = attribute.data
    if isinstance(data, ConstantSequence):
        value = data[0] if len(data) else None
        return attribute.name, type(value), value, len(data)
    values = tuple(data)
    if all(isinstance(value, (int, float)) for value in values):
        return attribute.name, tuple(type(value) for value in values), values
    return attribute.name, id(data)
