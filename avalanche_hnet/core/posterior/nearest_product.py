"""Few Kronecker products in place of a sum of many.

Van Loan & Pitsianis 1993, *Approximation with Kronecker products*: the matrix A ⊗ G, rearranged, is
the outer product vec(A) vec(G)ᵀ, with the same Frobenius norm. So the product that is nearest to
Σ_k A_k ⊗ G_k is the leading singular pair of Σ_k vec(A_k) vec(G_k)ᵀ. That lies in the spans of
{A_k} and {G_k}, so that it takes nothing but their inner products to find it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor


class Product(NamedTuple):
    """A ⊗ G for each of K groups, both positive semidefinite.

    Attributes:
        inputs: A, (K, I, I), or its diagonal (K, I).
        outputs: G, (K, O, O).
    """

    inputs: Tensor
    outputs: Tensor


def nearest_product(terms: Sequence[Product]) -> Product:
    """The A ⊗ G that is nearest to Σ_k A_k ⊗ G_k in the Frobenius norm, for each group.

    A is a sum of A_k and G one of G_k with coefficients that are not negative (they are a Perron
    vector: inner products of positive semidefinite matrices are not negative). So both are
    positive semidefinite again, to the rounding of one sum, however often that is done. A and G
    have the same norm, so that neither overflows before their product does.

    Args:
        terms: at least one, of the same sizes.
    """
    basis = _Basis.of(terms)
    # With unit matrices as bases the rearranged sum is diag(w), and its singular vectors x, y
    # in the metrics P, Q of the bases obey x ∝ w Q y and y ∝ w P x.
    root_p, root_q = _root(basis.inner_inputs), _root(basis.weighted_outputs())
    _, _, right = torch.linalg.svd(root_p @ root_q)
    # Where singular values are equal, the vectors may have mixed signs; their absolute values are
    # singular vectors, too.
    x = (root_q @ right[:, 0, :, None]).abs()
    x = x / x.sum(1, keepdim=True).clamp_min(_TINY)
    y = basis.weights[..., None] * (basis.inner_inputs @ x)
    square = (x.mT @ basis.inner_inputs @ x).clamp_min(_TINY)  # ‖A‖²
    y = y / square
    norm_a = square.sqrt()
    norm_g = (y.mT @ basis.inner_outputs @ y).clamp_min(0).sqrt()
    balance = (norm_g / norm_a).sqrt()
    return Product(
        _combined(basis.unit_inputs, x * balance, terms[0].inputs),
        _combined(basis.unit_outputs, y / balance.clamp_min(_TINY), terms[0].outputs),
    )


def nearest_products(terms: Sequence[Product], rank: int | None) -> tuple[Product, ...]:
    """At most ``rank`` positive semidefinite products in place of the sum of all terms.

    For rank 1 that is :func:`nearest_product`. The nearest sum of two or more products need not be
    positive semidefinite, and no penalty then. So these come from merging, again and again, the two
    products that lose the least in the Frobenius norm by being replaced with the nearest one. That
    keeps each of them, and their sum, positive semidefinite.

    Args:
        terms: of the same sizes; those that are zero are left out.
        rank: None for all of them.
    """
    terms = [t for t in terms if bool(t.inputs.any()) and bool(t.outputs.any())]
    if rank == 1 and terms:
        return (nearest_product(terms),)
    while rank is not None and len(terms) > rank:
        losses = _Basis.of(terms).losses()
        pair = min(combinations(range(len(terms)), 2), key=lambda ij: float(losses[ij]))
        merged = nearest_product([terms[k] for k in pair])
        terms = [*(t for k, t in enumerate(terms) if k not in pair), merged]
    return tuple(terms)


_TINY = torch.finfo(torch.float64).tiny


class _Basis(NamedTuple):
    """Terms as w_k Â_k ⊗ Ĝ_k with matrices of norm 1, for n terms and K groups.

    Attributes:
        unit_inputs: the Â, flat (n, K, I²) or (n, K, I).
        unit_outputs: the Ĝ, flat (n, K, O²).
        weights: w (K, n), in float64 as all that follows.
        inner_inputs: P_kl = ⟨Â_k, Â_l⟩, (K, n, n).
        inner_outputs: Q_kl = ⟨Ĝ_k, Ĝ_l⟩, (K, n, n).
    """

    unit_inputs: Tensor
    unit_outputs: Tensor
    weights: Tensor
    inner_inputs: Tensor
    inner_outputs: Tensor

    @classmethod
    def of(cls, terms: Sequence[Product]) -> _Basis:
        units, norms, inner = [], [], []
        for matrices in zip(*terms, strict=True):
            flat = torch.stack([m.flatten(1) for m in matrices])
            norm = torch.linalg.vector_norm(flat, dim=2, dtype=torch.float64)
            smallest = torch.finfo(flat.dtype).tiny  # instead of zero
            flat = flat / norm.clamp_min(smallest)[..., None].to(flat.dtype)
            units.append(flat)
            norms.append(norm)
            inner.append(torch.einsum("nkx,mkx->knm", flat, flat).double())
        weights = (norms[0] * norms[1]).T
        return cls(units[0], units[1], weights, inner[0], inner[1])

    def weighted_outputs(self) -> Tensor:
        """w_k Q_kl w_l."""
        return self.weights[:, :, None] * self.inner_outputs * self.weights[:, None, :]

    def losses(self) -> Tensor:
        """Squared errors (n, n) of the nearest product to each pair of terms, over all groups.

        The square of the second singular value of a rearranged sum of rank two, from the sum of
        the squares of both and from their product.
        """
        products = self.weights[:, :, None] * self.weights[:, None, :]
        p, q = self.inner_inputs, self.inner_outputs
        squares = self.weights.square()
        total = squares[:, :, None] + squares[:, None, :] + 2 * products * p * q
        both = products.square() * (1 - p.square()).clamp_min(0) * (1 - q.square()).clamp_min(0)
        larger = total + (total.square() - 4 * both).clamp_min(0).sqrt()
        return (2 * both / larger.clamp_min(_TINY)).sum(0)


def _root(matrices: Tensor) -> Tensor:
    """The positive semidefinite roots of (K, n, n)."""
    values, vectors = torch.linalg.eigh(matrices)
    return vectors * values.clamp_min(0).sqrt()[:, None, :] @ vectors.mT


def _combined(units: Tensor, coefficients: Tensor, like: Tensor) -> Tensor:
    """Σ_k c_k of flat matrices (n, K, …), c (K, n, 1)."""
    total = (units * coefficients.permute(1, 0, 2).to(units.dtype)).sum(0)
    return total.view_as(like)
