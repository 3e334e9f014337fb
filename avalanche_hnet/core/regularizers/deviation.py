"""How far generated weights are from others, and the sum of squares at the price of one task.

The output layer of a hypernetwork is linear, so the difference between two sets of weights is, for
task j and chunk k,

    d_jk = v_jk X,    X = [ΔA; Δb; A],    v_jk = [z_jk, 1, Δz_jk],

with the output layer's weight A (r × C) and bias b, its inputs z_jk, and their changes. Therefore

    Σ_jk ‖d_jk‖² = tr(XXᵀ S),    S = Σ_jk v_jkᵀ v_jk,

whose cost hardly depends on the number of tasks: X, with its C columns, enters two products of
size C (2r+1)², one for the value and one for the gradient 2 S X.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

SHARED, UNUSED = -1, -2


class Deviation(NamedTuple):
    """d_jk = z_jk ΔA + Δb + Δz_jk A for T tasks and K chunks of C weights.

    Attributes:
        weight: A (r, C).
        weight_change: ΔA (r, C).
        bias_change: Δb (C,).
        hidden: z (T, K, r).
        hidden_change: Δz (T, K, r).
    """

    weight: Tensor
    weight_change: Tensor
    bias_change: Tensor
    hidden: Tensor
    hidden_change: Tensor

    def weights(self, n_weights: int) -> Tensor:
        """All deviations themselves, (T, W): the direct form."""
        direct = F.linear(self.hidden, self.weight_change.T, self.bias_change)
        return (direct + self.hidden_change @ self.weight).flatten(1)[:, :n_weights]

    def sum_of_squares(self, units: UnitClasses, tasks: Tensor) -> Tensor:
        """Σ_jk ‖d_jk‖² over the weights that count for each task: the quadratic form.

        Can be differentiated once.

        Args:
            units: which columns of X count for which task and chunk.
            tasks: the T tasks' numbers.
        """
        change = torch.cat([self.weight_change, self.bias_change[None]])
        vectors = torch.cat([F.pad(self.hidden, (0, 1), value=1.0), self.hidden_change], dim=-1)
        value: Tensor = _SumOfSquares.apply(
            change, self.weight, vectors.flatten(0, 1), units, tasks
        )
        return value


class UnitClasses:
    """The units of the output layer, grouped by the tasks and chunks for which they count.

    Unit i of the output layer generates weight k C + i in chunk k. A weight counts for all tasks,
    for one (weights of its own output units) or for none (units of no task, and what lies beyond
    the last weight). Units that agree in this for all chunks are one class: all products together
    cost as much as those over the whole layer, however many classes there are.

    Args:
        owners: (W,), the task for which each weight counts, or ``SHARED`` or ``UNUSED``.
        chunk_size: C.
    """

    def __init__(self, owners: Tensor, chunk_size: int) -> None:
        padding = -len(owners) % chunk_size
        by_unit = F.pad(owners, (0, padding), value=UNUSED).view(-1, chunk_size)  # (K, C)
        if len(by_unit) == 1:  # much faster than along a dimension
            kinds, class_of_unit = by_unit[0].unique(return_inverse=True)
            kinds = kinds[None]
        else:
            kinds, class_of_unit = by_unit.unique(dim=1, return_inverse=True)
        # In order of appearance, so that contiguous classes need no reordering of units.
        first_unit = torch.full((kinds.shape[1],), chunk_size, device=owners.device)
        every_unit = torch.arange(chunk_size, device=owners.device)
        rank = first_unit.scatter_reduce(0, class_of_unit, every_unit, "amin").argsort()
        class_of_unit = rank.argsort()[class_of_unit]
        self._owners = kinds[:, rank]  # (K, classes)
        contiguous = bool((class_of_unit[1:] >= class_of_unit[:-1]).all())
        self._order = None if contiguous else class_of_unit.argsort(stable=True)
        self._sizes: list[int] = class_of_unit.bincount().tolist()
        self._count_for_all: list[bool] = (self._owners == SHARED).all(0).tolist()
        self._constant: tuple[Tensor, int, Tensor, list[Tensor]] | None = None

    def in_order(self, matrix: Tensor) -> Tensor:
        """The matrix (…, C) with the columns of each class next to each other."""
        return matrix if self._order is None else matrix.index_select(-1, self._order)

    def restored(self, matrix: Tensor) -> Tensor:
        """The inverse of :meth:`in_order`."""
        return (
            matrix
            if self._order is None
            else torch.empty_like(matrix).index_copy_(-1, self._order, matrix)
        )

    def classes(self, matrix: Tensor) -> Iterator[Tensor]:
        """Views (…, c) of each class of a matrix in order."""
        return iter(matrix.split(self._sizes, dim=-1))

    def with_grams(self, matrix: Tensor, *, constant: bool) -> tuple[Tensor, list[Tensor]]:
        """The matrix (…, C) in order, and for each class the products of all pairs of its units.

        With ``constant``, they are kept until another matrix comes.
        """
        kept = self._constant
        if constant and kept is not None:
            source, version, ordered, grams = kept
            same = source.data_ptr() == matrix.data_ptr() and source.shape == matrix.shape
            if same and version == matrix._version:
                return ordered, grams
        ordered = self.in_order(matrix)
        grams = [_products(part, part) for part in self.classes(ordered)]
        if constant:
            self._constant = matrix, matrix._version, ordered, grams
        return ordered, grams

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_constant": None}

    def counted(self, vectors: Tensor, tasks: Tensor) -> Iterator[Tensor]:
        """For each class, ``vectors`` (T K, …) with zeros where the class does not count."""
        for index, count_for_all in enumerate(self._count_for_all):
            if count_for_all:
                yield vectors
            else:
                yield vectors * counts_for(self._owners[:, index], tasks).view(-1, 1)


def counts_for(owners: Tensor, tasks: Tensor) -> Tensor:
    """Whether weights with ``owners`` (N,) count for each of ``tasks`` (T,): booleans (T, N)."""
    return (owners == SHARED) | (owners == tasks[:, None])


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Products a @ b.T of wide matrices (A, c) and (B, c), in two halves, which can run at once."""
    if a.stride(1) != 1 or b.stride(1) != 1:
        return a @ b.T
    half = a.shape[1] // 2
    left, right = (
        m.as_strided((2, len(m), half), (half, m.stride(0), 1), m.storage_offset()) for m in (a, b)
    )
    product = torch.bmm(left, right.transpose(1, 2)).sum(0)
    if a.shape[1] % 2:
        product += a[:, -1:] @ b[:, -1:].T
    return product


class _SumOfSquares(torch.autograd.Function):
    """tr(XXᵀ S) summed over the classes of units, of X in two parts: [ΔA; Δb] and A."""

    @staticmethod
    def forward(
        ctx: Any, change: Tensor, weight: Tensor, vectors: Tensor, units: UnitClasses, tasks: Tensor
    ) -> Tensor:
        change = units.in_order(change)
        weight, grams = units.with_grams(weight, constant=not ctx.needs_input_grad[1])
        value = vectors.new_zeros(())
        vectors_gradient = torch.zeros_like(vectors)
        moments = []
        for changes, weights, weights_gram, counted in zip(
            units.classes(change),
            units.classes(weight),
            grams,
            units.counted(vectors, tasks),
            strict=True,
        ):
            mixed = _products(changes, weights)
            upper, lower = (_products(changes, changes), mixed), (mixed.T, weights_gram)
            gram = torch.cat([torch.cat(upper, dim=1), torch.cat(lower, dim=1)])
            moment = counted.T @ vectors
            value += (gram * moment).sum()
            vectors_gradient += counted @ gram
            moments.append(moment)
        ctx.save_for_backward(change, weight, vectors_gradient, *moments)
        ctx.units = units
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        change, weight, vectors_gradient, *moments = ctx.saved_tensors
        units, n = ctx.units, len(change)

        def gradient(of: slice, like: Tensor) -> Tensor:
            """2 S X of some rows of X."""
            rows = torch.empty_like(like)
            for part, changes, weights, moment in zip(
                units.classes(rows),
                units.classes(change),
                units.classes(weight),
                moments,
                strict=True,
            ):
                strengths = 2 * grad_output * moment[of]
                torch.mm(strengths[:, :n], changes, out=part)
                part.addmm_(strengths[:, n:], weights)
            return units.restored(rows)

        return (
            gradient(slice(n), change),
            gradient(slice(n, None), weight) if ctx.needs_input_grad[1] else None,
            2 * grad_output * vectors_gradient,
            None,
            None,
        )
