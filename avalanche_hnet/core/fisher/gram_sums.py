"""Sums of products x xᵀ over the rows of many batches."""

from __future__ import annotations

from torch import Tensor

# Of the symmetric products, blocks of so many rows leave out what lies left of the diagonal.
_BLOCK = 128
# Products of fewer rows take longer to add than to make, so these wait for others.
_ENOUGH_ROWS = 256


class GramSums:
    """Σ x xᵀ for rows x of several groups.

    Args:
        like: what decides about type and device.
        n_groups: K.
        size: X, of a row.
    """

    def __init__(self, like: Tensor, n_groups: int, size: int) -> None:
        self._like, self._shape = like, (n_groups, size, size)
        self._upper: Tensor | None = None  # no memory for what is not used
        self._waiting: Tensor | None = None
        self._n_waiting, self._weight = 0, 1.0

    @property
    def is_used(self) -> bool:
        """Whether anything has been added."""
        return self._upper is not None

    def add(self, rows: Tensor, weight: float = 1.0) -> None:
        """Add ``weight`` times the products of rows (K, …, X), or of shorter ones before zeros."""
        if not rows.numel():
            return
        if self._upper is None:
            self._upper = self._like.new_zeros(self._shape)
        rows = _as_matrices(rows.to(self._upper.dtype))
        if len(rows) > 1 or rows.shape[1] >= _ENOUGH_ROWS:
            self._add_products(rows, weight)
        else:
            self._keep(rows, weight)

    def _keep(self, rows: Tensor, weight: float) -> None:
        """Let rows (1, M, X) wait until there are enough of them."""
        if self._waiting is None:
            self._waiting = self._like.new_empty(1, 2 * _ENOUGH_ROWS, rows.shape[2])
        end = self._n_waiting + rows.shape[1]
        if weight != self._weight or end > self._waiting.shape[1]:
            self._add_waiting()
            end = rows.shape[1]
        self._waiting[:, self._n_waiting : end] = rows
        self._n_waiting, self._weight = end, weight

    def _add_waiting(self) -> None:
        if self._waiting is not None and self._n_waiting:
            self._add_products(self._waiting[:, : self._n_waiting], self._weight)
            self._n_waiting = 0

    def _add_products(self, rows: Tensor, weight: float) -> None:
        """Those of rows (K, M, X)."""
        assert self._upper is not None
        size = rows.shape[-1]
        if len(rows) > 1:
            self._upper[:, :size, :size].baddbmm_(rows.mT, rows, alpha=weight)
            return
        matrix, total = rows[0], self._upper[0]
        for start in range(0, size, _BLOCK):
            end = min(start + _BLOCK, size)
            upper = total[start:end, start:size]
            upper.addmm_(matrix[:, start:end].T, matrix[:, start:], alpha=weight)

    def total(self) -> Tensor:
        """The sums (K, X, X), symmetric to the last digit: the tensor that they were added in."""
        if self._upper is None:
            return self._like.new_zeros(self._shape)
        self._add_waiting()
        total = self._upper
        for start in range(0, total.shape[1], _BLOCK):
            end = start + _BLOCK
            block = total[:, start:end, start:end]
            block.copy_(block.triu() + block.triu(1).mT)
            total[:, end:, start:end] = total[:, start:end, end:].mT
        return total


def _as_matrices(rows: Tensor) -> Tensor:
    """(K, …, X) to (K, M, X), copied in the order that the numbers are in, if at all."""
    if rows.stride(-1) == 1 or rows.dim() == 3:
        return rows.reshape(len(rows), -1, rows.shape[-1])
    return rows.movedim(-1, 1).flatten(2).mT
