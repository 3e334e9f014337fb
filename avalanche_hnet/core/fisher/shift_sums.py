"""Products of the patches of a convolution with stride 1, of which most are shifts of others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from math import prod
from typing import NamedTuple

from torch import Tensor

Offset = tuple[int, ...]


class Pair(NamedTuple):
    """Two elements of a kernel, and the pair that it is the shift of, in one dimension, by one.

    Attributes:
        left: of the kernel.
        right: of the kernel, not before ``left``.
        dim: of the shift, or None if this pair is the first of its kind.
    """

    left: Offset
    right: Offset
    dim: int | None

    @property
    def before(self) -> tuple[Offset, Offset]:
        """The pair that this one is the shift of."""
        assert self.dim is not None
        return _moved(self.left, self.dim, -1), _moved(self.right, self.dim, -1)


class ShiftSums:
    """Σ a aᵀ over all patches a of images, by the differences of two elements of the kernel.

    The block of A for elements d and d' is a sum over positions p of x_{p+d} x_{p+d'}ᵀ, p + d in a
    window. For d + e and d' + e it is the same sum over a window that has been moved by e. So each
    difference d' − d takes one sum over a whole window, and the others of that difference only what
    comes into the window and what goes out of it: for a kernel of 3×3 hardly more than 13 instead
    of 81 sums.

    Args:
        like: what decides about type and device.
        n_groups: K.
        n_channels: C, in each group.
        kernel: its size.
        dilation: of the kernel.
    """

    def __init__(
        self,
        like: Tensor,
        n_groups: int,
        n_channels: int,
        kernel: Sequence[int],
        dilation: Sequence[int],
    ) -> None:
        self._kernel, self._dilation = tuple(kernel), tuple(dilation)
        self._pairs = [*_pairs(self._kernel)]
        self._like, self._shape = like, (len(self._pairs), n_groups, n_channels, n_channels)
        self._sums: Tensor | None = None  # no memory for what is not used

    def add(self, padded: Tensor, weight: float) -> None:
        """Add ``weight`` times the products of the patches of images (B, K·C, …)."""
        if self._sums is None:
            self._sums = self._like.new_zeros(self._shape)
        images = padded.to(self._sums.dtype).unflatten(1, self._shape[1:3]).movedim(0, 2)
        sizes = zip(padded.shape[2:], self._kernel, self._dilation, strict=True)
        window = tuple(n - d * (k - 1) for n, k, d in sizes)
        windows = _Windows(images, self._dilation)
        for total, (left, right, dim) in zip(self._sums, self._pairs, strict=True):
            if dim is None:
                _add_product(total, windows(left, window), windows(right, window), weight)
                continue
            # What goes out of the window, and what comes into it, when it moves in one dimension.
            width = min(self._dilation[dim], window[dim])
            edge = tuple(width if i == dim else n for i, n in enumerate(window))
            for is_out, sign in ((True, -weight), (False, weight)):
                shift = -self._dilation[dim] if is_out else window[dim] - width
                ends = windows(left, edge, dim, shift), windows(right, edge, dim, shift)
                _add_product(total, *ends, sign)

    def total(self) -> Tensor | None:
        """The sums (K, I, I), channels before elements of the kernel; None if nothing was added."""
        _, n_groups, n_channels, _ = self._shape
        n_elements = prod(self._kernel)
        size = n_channels * n_elements
        if self._sums is None:
            return None
        blocks = self._like.new_empty(n_elements, n_elements, n_groups, n_channels, n_channels)
        number = {d: i for i, d in enumerate(product(*map(range, self._kernel)))}
        for change, pair in zip(self._sums, self._pairs, strict=True):
            left, right = number[pair.left], number[pair.right]
            block = blocks[left, right]
            block.copy_(change)
            if pair.dim is not None:
                first, second = pair.before
                block += blocks[number[first], number[second]]
            if left == right:
                block.copy_((block + block.mT) / 2)
                # What has gone out of the window may be all there was, but for its rounding.
                block.diagonal(dim1=1, dim2=2).clamp_(min=0)
            else:
                blocks[right, left] = block.mT
        return blocks.permute(2, 3, 0, 4, 1).reshape(n_groups, size, size)


@cache
def share_of_work(
    window: tuple[int, ...], kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> float:
    """The multiplications that are left, as a share of those for all pairs of kernel elements."""
    work = 0.0
    for _, _, dim in _pairs(kernel):
        work += 1.0 if dim is None else 2 * min(1.0, dilation[dim] / window[dim])
    return work / prod(kernel) ** 2


class _Windows:
    """Columns of images (K, C, B, …) in windows, each copied once."""

    def __init__(self, images: Tensor, dilation: Sequence[int]) -> None:
        self._images, self._dilation = images, dilation
        self._copies: dict[tuple[tuple[int, ...], tuple[int, ...]], Tensor] = {}

    def __call__(
        self, offset: Offset, size: tuple[int, ...], dim: int | None = None, shift: int = 0
    ) -> Tensor:
        """(K, C, M) of the window at an element of the kernel, shifted in one dimension."""
        starts = [d * o for d, o in zip(self._dilation, offset, strict=True)]
        if dim is not None:
            starts[dim] += shift
        key = tuple(starts), size
        if key not in self._copies:
            part = self._images
            for i, (start, length) in enumerate(zip(starts, size, strict=True), start=3):
                part = part.narrow(i, start, length)
            self._copies[key] = part.flatten(2).contiguous()
        return self._copies[key]


def _pairs(kernel: tuple[int, ...]) -> Iterator[Pair]:
    """All pairs of kernel elements but for their order, each after the one it is a shift of."""
    elements = [*product(*map(range, kernel))]
    origin = elements[0]
    for difference in product(*(range(1 - k, k) for k in kernel)):
        if difference < origin:
            continue
        lowest = tuple(max(0, -d) for d in difference)
        for left in elements:
            right = tuple(a + d for a, d in zip(left, difference, strict=True))
            inside = all(0 <= r < k for r, k in zip(right, kernel, strict=True))
            if inside and all(a >= low for a, low in zip(left, lowest, strict=True)):
                moved = [i for i, (a, low) in enumerate(zip(left, lowest, strict=True)) if a > low]
                yield Pair(left, right, moved[-1] if moved else None)


def _moved(offset: Offset, dim: int, by: int) -> Offset:
    return tuple(n + by if i == dim else n for i, n in enumerate(offset))


def _add_product(total: Tensor, left: Tensor, right: Tensor, weight: float) -> None:
    if len(total) == 1:  # one matrix is faster than a batch of one
        total[0].addmm_(left[0], right[0].T, alpha=weight)
    else:
        total.baddbmm_(left, right.mT, alpha=weight)
