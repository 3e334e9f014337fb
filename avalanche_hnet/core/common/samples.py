"""Inputs of several tensors, with the samples in dimension 0 of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from avalanche_hnet.core.common.structures import (
    described,
    map_tensors,
    tensors_in,
    with_tensors,
)


@dataclass(frozen=True, eq=False)
class Samples:
    """B inputs in a structure of tensors, such as token numbers and attention masks.

    It can be used like one tensor (B, …): indexed, split, moved and concatenated by ``torch.cat``.
    Made by :func:`as_samples`.

    Attributes:
        structure: what a model is called with.
    """

    structure: Any

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors of the structure."""
        return tensors_in(self.structure)

    @property
    def shape(self) -> tuple[Any, ...]:
        """B, then the shape of a sample in each of the tensors."""
        return len(self), *(tensor.shape[1:] for tensor in self.tensors)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.tensors[0].device

    @property
    def dtype(self) -> torch.dtype:
        """The coarsest floating-point type among the tensors, or that of the first."""
        floating = [t.dtype for t in self.tensors if t.is_floating_point()]
        return max(floating or [self.tensors[0].dtype], key=_coarseness)

    def is_floating_point(self) -> bool:
        """Whether any of the tensors has a floating-point type."""
        return self.dtype.is_floating_point

    def is_inference(self) -> bool:
        """Whether any of the tensors was made in inference mode."""
        return any(tensor.is_inference() for tensor in self.tensors)

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, rows: Any) -> Samples:
        return self.map(lambda tensor: tensor[rows])

    def map(self, function: Callable[[Tensor], Tensor]) -> Samples:
        """The same structure with ``function`` of each tensor."""
        return Samples(map_tensors(function, self.structure))

    def split(self, size: int) -> list[Samples]:
        """Pieces of at most ``size`` samples."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    def to(self, target: torch.device | torch.dtype) -> Samples:
        """On another device, or with floating-point numbers of another type."""
        is_type = isinstance(target, torch.dtype)
        return self.map(lambda t: t.to(target) if not is_type or t.is_floating_point() else t)

    def clone(self) -> Samples:
        """A copy."""
        return self.map(torch.clone)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not torch.cat:
            return NotImplemented
        (parts,) = args
        columns = zip(*(part.tensors for part in parts), strict=True)
        joined = [torch.cat(column) for column in columns]
        return Samples(with_tensors(parts[0].structure, joined))


def as_samples(x: Any, name: str = "x") -> Tensor | Samples:
    """A tensor as it is, any other structure of tensors as :class:`Samples`.

    Args:
        x: see above.
        name: of ``x``, for errors.

    Raises:
        TypeError: if there is no tensor in it.
        ValueError: if its tensors differ in the length of dimension 0.
    """
    if isinstance(x, (Tensor, Samples)):
        return x
    tensors = tensors_in(x)
    if not tensors:
        raise TypeError(
            f"{name} must be a tensor, or a mapping, tuple, list or dataclass of tensors, got "
            f"{described(x)}"
        )
    if len({tensor.shape[:1] for tensor in tensors}) > 1 or tensors[0].dim() == 0:
        raise ValueError(
            f"{name} must have the samples in dimension 0 of every tensor, got the shapes "
            f"{[tuple(tensor.shape) for tensor in tensors]}"
        )
    return Samples(x)


def joined(parts: Sequence[Tensor | Samples]) -> Tensor | Samples:
    """All samples of the parts, which have one and the same structure, one after the other."""
    tensors: Any = parts  # as far as torch.cat is concerned
    return torch.cat(tensors)


def tensors_of(x: Tensor | Samples) -> list[Tensor]:
    """All tensors, for ``vmap``."""
    return x.tensors if isinstance(x, Samples) else [x]


def like(x: Tensor | Samples, tensors: list[Tensor]) -> Tensor | Samples:
    """The structure of ``x`` with other :func:`tensors_of`."""
    return Samples(with_tensors(x.structure, tensors)) if isinstance(x, Samples) else tensors[0]


def structure_of(x: Tensor | Samples) -> Any:
    """What a model is called with: the reverse of :func:`as_samples`."""
    return x.structure if isinstance(x, Samples) else x


def _coarseness(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps if dtype.is_floating_point else 0.0
