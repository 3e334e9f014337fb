"""Products of the patches of a convolution with stride 1, of which most are shifts of others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from math import prod
from typing import NamedTuple

from torch import Tensor

Offset = tuple[int, ...]
Padding = tuple[tuple[int, int], ...]


# Products of fewer rows than this are slow.
_SHORTEST_LINE = 64


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


class Part(NamedTuple):
    """A product of windows of images that a pair's sum, or its change by the shift, is made of.

    Attributes:
        number: of the pair.
        is_out: whether it is subtracted: what goes out of the window when it moves.
        left: where the window of the left element starts in the images.
        right: where that of the right element does.
        size: of both.
    """

    number: int
    is_out: bool
    left: Offset
    right: Offset
    size: tuple[int, ...]


class ShiftSums:
    """Σ a aᵀ over all patches a of images, by the differences of two elements of the kernel.

    The block of A for elements d and d' is a sum over positions p of x_{p+d} x_{p+d'}ᵀ, p + d in a
    window. For d + e and d' + e it is the same sum over a window that has been moved by e. So each
    difference d' − d takes one sum over a whole window, and the others of that difference only what
    comes into the window and what goes out of it: for a kernel of 3×3 hardly more than 13 instead
    of 81 sums. Of windows that reach into the zeros around an image, less is left.

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

    def add(self, images: Tensor, weight: float, padding: Padding | None = None) -> None:
        """Add ``weight`` times the products of the patches of images (B, K·C, …).

        Args:
            images: without the zeros around them.
            weight: see above.
            padding: how many zeros are before and after them in each dimension; none by default.
        """
        if self._sums is None:
            self._sums = self._like.new_zeros(self._shape)
        padding = padding or no_padding(self._kernel)
        sizes = zip(images.shape[2:], padding, self._kernel, self._dilation, strict=True)
        window = tuple(n + sum(around) - d * (k - 1) for n, around, k, d in sizes)
        groups = images.to(self._sums.dtype).unflatten(1, self._shape[1:3])
        windows = _Windows(groups.movedim((1, 0, 2), (0, -2, -1)).contiguous())
        for number, is_out, left, right, size in _parts(
            window, self._kernel, self._dilation, padding
        ):
            alpha = -weight if is_out else weight
            _add_product(self._sums[number], windows(left, size), windows(right, size), alpha)

    def total(self) -> Tensor | None:
        """The sums (K, I, I), channels before elements of the kernel; None if nothing was added."""
        _, n_groups, n_channels, _ = self._shape
        n_elements = prod(self._kernel)
        size = n_channels * n_elements
        if self._sums is None:
            return None
        blocks = self._blocks(self._sums)
        shape = n_groups, n_channels, n_elements, n_channels, n_elements
        total = self._like.new_empty(shape)
        elements = [*product(*map(range, self._kernel))]
        row = self._like.new_empty(n_elements, n_groups, n_channels, n_channels)
        for i, left in enumerate(elements):
            for block, right in zip(row, elements, strict=True):
                block.copy_(blocks[left, right] if left <= right else blocks[right, left].mT)
            total[:, :, i] = row.permute(1, 2, 3, 0)
        return total.view(n_groups, size, size)

    def _blocks(self, sums: Tensor) -> dict[tuple[Offset, Offset], Tensor]:
        """The blocks (K, C, C) for all pairs."""
        blocks: dict[tuple[Offset, Offset], Tensor] = {}
        for change, pair in zip(sums, self._pairs, strict=True):
            block = change if pair.dim is None else change + blocks[pair.before]
            if pair.left == pair.right:
                block = (block + block.mT) / 2
                # What has gone out of the window may be all there was, but for its rounding.
                block.diagonal(dim1=1, dim2=2).clamp_(min=0)
            blocks[pair.left, pair.right] = block
        return blocks


def no_padding(kernel: Sequence[int]) -> Padding:
    """Of images with nothing around them."""
    return ((0, 0),) * len(kernel)


@cache
def share_of_work(
    window: tuple[int, ...],
    kernel: tuple[int, ...],
    dilation: tuple[int, ...],
    padding: Padding | None = None,
) -> float:
    """The multiplications that are left, as a share of those for all pairs of kernel elements."""
    parts = _parts(window, kernel, dilation, padding or no_padding(kernel))
    return sum(prod(part.size) for part in parts) / prod(window) / prod(kernel) ** 2


class _Windows:
    """Rows of images (K, …, B, C) in windows."""

    def __init__(self, images: Tensor) -> None:
        self._images = images
        self._rows: dict[tuple[Offset, tuple[int, ...]], Tensor] = {}

    def __call__(self, starts: Offset, size: tuple[int, ...]) -> Tensor:
        """(K, L, M, C), L·M rows of the window that starts there.

        A view, if there are one or two dimensions and one group; but lines that are short are
        copied, and everything is copied only once.
        """
        key = starts, size
        if key not in self._rows:
            part = self._images
            for i, (start, length) in enumerate(zip(starts, size, strict=True), start=1):
                part = part.narrow(i, start, length)
            lines = part.flatten(-3, -2)
            if len(lines) > 1 or lines.shape[-2] < _SHORTEST_LINE:
                self._rows[key] = lines.flatten(1, -2)[:, None]
            else:
                self._rows[key] = lines.flatten(1, -3) if len(size) > 1 else lines[:, None]
        return self._rows[key]


@cache
def _parts(
    window: tuple[int, ...], kernel: tuple[int, ...], dilation: tuple[int, ...], padding: Padding
) -> tuple[Part, ...]:
    """What is left of all pairs' products, without what is a product with zeros around an image."""
    parts = []
    for number, (left, right, dim) in enumerate(_pairs(kernel)):
        whole = [(0, n) for n in window]
        if dim is None:
            moved = [(False, whole)]
        else:
            # What goes out of the window, and what comes into it, when it moves in one dimension.
            step, end = dilation[dim], window[dim]
            width = min(step, end)
            edges = (True, (-step, width - step)), (False, (end - width, end))
            moved = [(is_out, [*whole[:dim], edge, *whole[dim + 1 :]]) for is_out, edge in edges]
        for is_out, ranges in moved:
            starts, lengths = [], []
            geometry = zip(ranges, left, right, window, kernel, dilation, padding, strict=True)
            for (first, last), a, b, n, k, step, (before, after) in geometry:
                n_inside = n + step * (k - 1) - before - after
                low, high = before - step * min(a, b), before + n_inside - step * max(a, b)
                start = max(first, low)
                starts.append((start + step * a - before, start + step * b - before))
                lengths.append(min(last, high) - start)
            if min(lengths) > 0:
                lefts, rights = zip(*starts, strict=True)
                parts.append(Part(number, is_out, lefts, rights, tuple(lengths)))
    return tuple(parts)


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
                # Where the elements differ most, windows share least and may reach into the zeros.
                dim = max(moved, key=lambda i: abs(difference[i]), default=None)
                yield Pair(left, right, dim)


def _moved(offset: Offset, dim: int, by: int) -> Offset:
    return tuple(n + by if i == dim else n for i, n in enumerate(offset))


def _add_product(total: Tensor, left: Tensor, right: Tensor, weight: float) -> None:
    if len(total) == 1:  # one matrix is faster than a batch of one
        total[0].addbmm_(left[0].mT, right[0], alpha=weight)
    else:
        total.baddbmm_(left[:, 0].mT, right[:, 0], alpha=weight)
