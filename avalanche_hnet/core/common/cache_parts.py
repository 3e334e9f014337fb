"""Work on large tensors in parts whose intermediate results stay in a CPU's cache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

_N_ELEMENTS = 2**15


def cache_parts(tensors: Sequence[Tensor]) -> Iterable[tuple[Tensor, ...]]:
    """Views of all tensors, part by part: flat, or the tensors themselves.

    Args:
        tensors: of one shape, on the CPU; to be changed under ``no_grad``, if at all.
    """
    if tensors[0].numel() <= _N_ELEMENTS or not all(t.is_contiguous() for t in tensors):
        return [tuple(tensors)]
    return zip(*(t.view(-1).split(_N_ELEMENTS) for t in tensors), strict=True)
