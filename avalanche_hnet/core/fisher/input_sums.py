"""The factor A of a layer, summed over batches."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Protocol

import torch
from torch import Tensor, nn

from avalanche_hnet.core.fisher.gram_sums import GramSums
from avalanche_hnet.core.fisher.layer_rows import Rows
from avalanche_hnet.core.fisher.layer_rules import padded_for
from avalanche_hnet.core.fisher.shift_sums import Padding, ShiftSums, share_of_work

# At most so many inputs of a convolution are copied at a time (32 MiB of float32).
_BUDGET = 2**23
# Products of fewer channels are too small to be worth one by one.
_FEWEST_CHANNELS = 16
# The share of all products that is left if each is made in one order of its factors only.
_ALL_BUT_SYMMETRIC = 0.55

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


class InputSums(Protocol):
    """Sums of what the inputs of samples contribute to A.

    Attributes:
        n_samples: how many samples these are.
    """

    n_samples: int

    def add(self, layer: nn.Module, inputs: Tensor, rows: Rows) -> None:
        """Add the samples of a call of the layer, with these inputs and rows."""

    def mean(self) -> Tensor:
        """A, averaged over the samples: (K, I, I), or its diagonal (K, I)."""


class RowSums:
    """Of rows a, and a one after them if there is a bias.

    Args:
        like: what decides about type and device.
        sizes: K, and I without the bias.
        has_bias: whether there is a bias.
        reduces: whether the rows of a sample are averaged first.
    """

    def __init__(
        self, like: Tensor, sizes: tuple[int, int], *, has_bias: bool, reduces: bool
    ) -> None:
        n_groups, n_inputs = sizes
        self.products = GramSums(like, n_groups, n_inputs + has_bias)
        self.rows = like.new_zeros(sizes)
        self.has_bias, self.reduces = has_bias, reduces
        self.n_samples = 0

    def add(self, layer: nn.Module, inputs: Tensor, rows: Rows) -> None:
        """See :class:`InputSums`."""
        self.n_samples += len(inputs)
        if not rows.gradients.numel():  # sequences of no length
            return
        for a, _ in rows.parts():
            self.add_rows(a)

    def add_rows(self, a: Tensor) -> None:
        """Add rows (K, b, R, I) of b samples."""
        if self.reduces and a.shape[2] > 1:
            a = a.mean(2, keepdim=True)
        n_positions = a.shape[2]
        self.products.add(a, 1 / n_positions)
        if self.has_bias:
            self.rows += a.sum((1, 2)) / n_positions

    def mean(self) -> Tensor:
        """See :class:`InputSums`."""
        return self.with_bias(self.products.total())

    def with_bias(self, total: Tensor) -> Tensor:
        """The average of products (K, I, I), which are given away; I counts the bias, if any."""
        if self.has_bias:
            total[:, :-1, -1] = total[:, -1, :-1] = self.rows
            total[:, -1, -1] = self.n_samples
        return total.div_(max(1, self.n_samples))


class PatchSums(RowSums):
    """Of the patches that a convolution sees.

    Args:
        like: what decides about type and device.
        layer: the convolution.
        has_bias: whether there is a bias.
        reduces: whether the patches of a sample are averaged first.
    """

    def __init__(self, like: Tensor, layer: Convolution, *, has_bias: bool, reduces: bool) -> None:
        n_channels = layer.in_channels // layer.groups
        sizes = layer.groups, n_channels * prod(layer.kernel_size)
        super().__init__(like, sizes, has_bias=has_bias, reduces=reduces)
        n = self._n_stacked = _n_stacked(layer)
        self._kernel = (1,) * n + layer.kernel_size[n:]
        self._dilation = (1,) * n + layer.dilation[n:]
        n_channels *= prod(layer.kernel_size[:n])
        self._shifts = ShiftSums(like, layer.groups, n_channels, self._kernel, self._dilation)

    def add(self, layer: nn.Module, inputs: Tensor, rows: Rows) -> None:
        """See :class:`InputSums`."""
        assert isinstance(layer, Convolution)
        positions = rows.gradients.shape[2:-1]
        padding = None if self._n_stacked else _zeros_around(layer)
        if not self.reduces and not self._is_worth_shifting(layer, positions, padding):
            super().add(layer, inputs, rows)
            return
        self.n_samples += len(inputs)
        n_positions = positions.numel()
        needs_padded = self.reduces or self.has_bias or padding is None
        padded = padded_for(layer, inputs) if needs_padded else inputs
        if self.reduces or self.has_bias:
            means = (_patch_sums(padded, layer) / n_positions).to(self.rows.dtype)
            if self.reduces:
                self.add_rows(means)
                return
            self.rows += means.sum((1, 2))
        step = max(1, _BUDGET // (n_positions * self.rows.numel()))
        for images in (padded if padding is None else inputs).split(step):
            stacked = _stacked(images, layer, self._n_stacked)
            self._shifts.add(stacked, 1 / n_positions, padding)

    def mean(self) -> Tensor:
        """See :class:`InputSums`."""
        shifted = self._shifts.total()
        if shifted is None:
            return super().mean()
        if not self.has_bias and not self.products.is_used:
            return self.with_bias(shifted)
        total = self.products.total()
        size = shifted.shape[-1]
        total[:, :size, :size] += shifted
        return self.with_bias(total)

    def _is_worth_shifting(
        self, layer: Convolution, positions: Sequence[int], padding: Padding | None
    ) -> bool:
        """Whether the products of the patches are cheaper as shifts of others."""
        if layer.stride[-1] > 1 or (layer.kernel_size[-1] == 1 and self._n_stacked):
            return False
        if len(positions) == 1 and layer.in_channels // layer.groups < _FEWEST_CHANNELS:
            return False
        share = share_of_work(tuple(positions), self._kernel, self._dilation, padding)
        return share < _ALL_BUT_SYMMETRIC


class TableSums:
    """Of rows that are a one in the place of the row number that is looked up: only the diagonal.

    Numbers below zero, of padding, look up nothing: they are no positions, and samples that have no
    others do not count.

    Args:
        like: what decides about type and device.
        n_rows: I, of the table.
        reduces: whether the rows of a sample are averaged first.
    """

    def __init__(self, like: Tensor, n_rows: int, *, reduces: bool) -> None:
        self._squares = like.new_zeros(1, n_rows)
        self._reduces = reduces
        self.n_samples = 0

    def add(self, layer: nn.Module, inputs: Tensor, rows: Rows) -> None:
        """See :class:`InputSums`."""
        numbers, n_rows = rows.inputs[0], self._squares.shape[1]
        numbers = numbers.reshape(len(numbers), numbers.shape[1:].numel())
        is_used = numbers >= 0
        n_positions = is_used.sum(1)
        self.n_samples += int(n_positions.count_nonzero())
        sample = torch.arange(len(numbers), device=numbers.device)[:, None]
        pairs, counts = (sample * n_rows + numbers)[is_used].unique(return_counts=True)
        shares = counts.to(self._squares.dtype) / n_positions[pairs // n_rows]
        self._squares[0].index_add_(0, pairs % n_rows, shares.square() if self._reduces else shares)

    def mean(self) -> Tensor:
        """See :class:`InputSums`."""
        return self._squares / max(1, self.n_samples)


def _n_stacked(layer: Convolution) -> int:
    """In how many dimensions the elements of the kernel are taken for channels.

    In all but the last, if there are few channels, or patches that are no neighbours.
    """
    n_channels = layer.in_channels // layer.groups
    if n_channels < _FEWEST_CHANNELS or any(s > 1 for s in layer.stride):
        return len(layer.kernel_size) - 1
    return 0


def _stacked(padded: Tensor, layer: Convolution, n: int) -> Tensor:
    """Images with the kernel's elements in n dimensions as channels, after the channels."""
    if n == 0:
        return padded
    windows = padded
    for i, (size, stride, dilation) in enumerate(
        zip(layer.kernel_size[:n], layer.stride, layer.dilation, strict=False), start=2
    ):
        windows = windows.unfold(i, dilation * (size - 1) + 1, stride)[..., ::dilation]
    ends = range(windows.dim() - n, windows.dim())
    return windows.movedim(tuple(ends), tuple(range(2, 2 + n))).flatten(1, 1 + n)


def _zeros_around(layer: Convolution) -> Padding | None:
    """The numbers of zeros before and after the inputs, or None if other numbers are there."""
    if layer.padding_mode != "zeros":
        return None
    ends = iter(layer._reversed_padding_repeated_twice)
    return tuple(zip(ends, ends, strict=True))[::-1]


def _patch_sums(padded: Tensor, layer: Convolution) -> Tensor:
    """Sums over the positions of each sample, (K, B, 1, I)."""
    sums = padded
    for size, stride, dilation in zip(layer.kernel_size, layer.stride, layer.dilation, strict=True):
        windows = sums.unfold(2, dilation * (size - 1) + 1, stride)[..., ::dilation]
        sums = windows.sum(2)
    return sums.reshape(len(padded), layer.groups, 1, -1).transpose(0, 1)
