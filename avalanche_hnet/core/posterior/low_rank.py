"""Positive semidefinite matrices that are cheap to multiply with: few eigenpairs, a diagonal."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from avalanche_hnet.core.common.arguments import at_least, number

MaxRank = int | float | None


class LowRank(NamedTuple):
    """V Vᵀ + diag(d), for K groups.

    Attributes:
        roots: V (K, n, r): eigenvectors times the square roots of their eigenvalues.
        remainder: d (K, n), not negative.
    """

    roots: Tensor
    remainder: Tensor

    def whole(self) -> Tensor:
        """As matrices (K, n, n)."""
        return self.roots @ self.roots.mT + torch.diag_embed(self.remainder)


Factor = Tensor | LowRank
"""Matrices (K, n, n), their diagonals (K, n) if they have nothing else, or approximations."""

Pair = tuple[Factor, Factor]
"""A and G of A ⊗ G."""


def check_max_rank(max_rank: MaxRank) -> None:
    """Require a count, a share or None.

    Raises:
        TypeError, ValueError: naming the argument, its value and what would be right.
    """
    if max_rank is None:
        return
    expected = "an integer of at least 1, a share in (0, 1) as a float, or None"
    number(expected, max_rank=max_rank)
    if isinstance(max_rank, float):
        if not 0 < max_rank < 1:
            raise ValueError(f"max_rank must be {expected}, got {max_rank}")
    else:
        at_least(1, max_rank=max_rank)


def low_rank(matrices: Tensor, values: Tensor, vectors: Tensor, max_rank: MaxRank) -> Factor:
    """The leading eigenpairs of matrices M, and what they leave of M's diagonal.

    The result has the diagonal of M and is positive semidefinite, since M without some of its
    eigenpairs is, whose diagonal is therefore not negative.

    Args:
        matrices: M (K, n, n), positive semidefinite.
        values: their eigenvalues (K, n), ascending.
        vectors: their eigenvectors (K, n, n), as columns.
        max_rank: how many eigenpairs at most; or which share of the trace they keep at least; or
            None for M itself.

    Returns:
        M itself where products with it cost no more: n/2 eigenpairs are as expensive.
    """
    size = matrices.shape[-1]
    rank = size if max_rank is None else _rank(values, max_rank)
    if 2 * rank >= size:
        return matrices
    diagonal = matrices.diagonal(dim1=1, dim2=2)
    roots = vectors[..., -rank:] * values[:, None, -rank:].clamp_min(0).sqrt()
    # Rows that are zero stay so, to the last bit.
    roots = roots.where(diagonal[..., None] > 0, 0).contiguous()
    return LowRank(roots, (diagonal - roots.square().sum(2)).clamp_min(0))


def add_products(total: Tensor, matrices: Tensor, pair: Pair, alpha: float) -> None:
    """Add ``alpha · G D A`` in place, for matrices D (K, O, I).

    Where both are :class:`LowRank`, that is without ``alpha ·`` :func:`remainder_of` the pair ∘ D.
    """
    inputs, outputs = pair
    if isinstance(inputs, LowRank) and isinstance(outputs, LowRank):
        left, right = _thin_products(matrices, inputs, outputs)
        total.baddbmm_(left, right, alpha=alpha)
        return
    product = _times(matrices, inputs)
    if isinstance(outputs, LowRank):
        total.baddbmm_(outputs.roots, torch.bmm(outputs.roots.mT, product), alpha=alpha)
        total.addcmul_(product, outputs.remainder[:, :, None], value=alpha)
    else:
        total.baddbmm_(outputs, product, alpha=alpha)


def remainder_of(pair: Pair) -> Tensor | None:
    """d_G d_Aᵀ (K, O, I) of A and G that are both :class:`LowRank`, which is left out above.

    It is cheapest together with what else there is by element.
    """
    inputs, outputs = pair
    if isinstance(inputs, LowRank) and isinstance(outputs, LowRank):
        return outputs.remainder[:, :, None] * inputs.remainder[:, None, :]
    return None


def _times(matrices: Tensor, factor: Factor) -> Tensor:
    """D M."""
    if isinstance(factor, LowRank):
        # The diagonal first, into which the product is added in place.
        product = matrices * factor.remainder[:, None, :]
        return product.baddbmm_(torch.bmm(matrices, factor.roots), factor.roots.mT)
    return matrices * factor[:, None, :] if factor.dim() == 2 else torch.bmm(matrices, factor)


def _thin_products(matrices: Tensor, inputs: LowRank, outputs: LowRank) -> tuple[Tensor, Tensor]:
    """L (K, O, r) and R (K, r, I) with G D A = L R + (d_G d_Aᵀ) ∘ D, for matrices D (K, O, I).

    With A = U Uᵀ + diag(d_A) and G = V Vᵀ + diag(d_G), L R is
    diag(d_G) (D U) Uᵀ + V [(Vᵀ D) diag(d_A) + (Vᵀ D U) Uᵀ].
    """
    # The cost of small layers is that of the calls: bmm is one, @ several.
    inputs_roots, outputs_roots = inputs.roots.mT, outputs.roots.mT
    by_inputs = torch.bmm(matrices, inputs.roots)
    by_outputs = torch.bmm(outputs_roots, matrices).mul_(inputs.remainder.unsqueeze(1))
    by_outputs.baddbmm_(torch.bmm(outputs_roots, by_inputs), inputs_roots)
    by_inputs.mul_(outputs.remainder.unsqueeze(2))
    left = torch.cat([by_inputs, outputs.roots], 2)
    return left, torch.cat([inputs_roots, by_outputs], 1)


def _rank(values: Tensor, max_rank: int | float) -> int:
    """How many eigenpairs, the same for all groups."""
    if not isinstance(max_rank, float):
        return int(max_rank)
    descending = values.clamp_min(0).flip(-1).double().cumsum(-1)
    is_less = descending < max_rank * descending[:, -1:]
    return min(int(is_less.sum(1).max()) + 1, values.shape[-1]) if is_less.numel() else 0
