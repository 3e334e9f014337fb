"""The covariance of one layer's weights, in the eigenbasis of its Kronecker product."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from avalanche_hnet.core.fisher.kronecker_layer import LayerLayout
from avalanche_hnet.core.posterior.eigenbasis import Eigenbasis
from avalanche_hnet.core.posterior.layer_products import LayerProducts


@dataclass(frozen=True, eq=False)
class LayerCovariance:
    """(A ⊗ G + diag(p))⁻¹ with the diagonal taken in the eigenbasis of A ⊗ G.

    That is exact where p is one number, as the prior's 1/σ². Where an experience has added
    precisions of single elements, their variances are right on average: of diag(p) in the
    eigenbasis only the diagonal is kept.

    Attributes:
        layout: how the layer's parameters make up matrices W (K, O, I).
        basis: of A ⊗ G.
        variances: the eigenvalues, (K, O, I).
    """

    layout: LayerLayout
    basis: Eigenbasis
    variances: Tensor

    @classmethod
    def of(cls, layer: LayerProducts, precision: float | Tensor) -> LayerCovariance:
        """From A ⊗ G (the nearest product, if there are several) and p, a number or (K, O, I)."""
        basis = layer.eigenbasis
        added = basis.of_diagonal(precision) if isinstance(precision, Tensor) else precision
        return cls(layer.layout, basis, (basis.values() + added).reciprocal())

    def root_times(self, noise: Tensor) -> Tensor:
        """A deviation D (K, O, I) with this covariance, from independent N(0, 1)."""
        return self.basis.out_of(noise * self.variances.sqrt())

    def forms(self, gradients: Tensor) -> Tensor:
        """Jᵀ Λ⁻¹ J for gradients J (B, K, O, I): (B,)."""
        return (self.basis.into(gradients).square() * self.variances).flatten(1).sum(1)
