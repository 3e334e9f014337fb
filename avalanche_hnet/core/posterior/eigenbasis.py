"""The basis in which a Kronecker product, and what is added to it for the prior, are diagonal."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from avalanche_hnet.core.posterior.nearest_product import Product


class Eigenbasis(NamedTuple):
    """A = U_A diag(α) U_Aᵀ and G = U_G diag(γ) U_Gᵀ, for K groups.

    Attributes:
        input_values: α (K, I), not negative.
        input_vectors: U_A (K, I, I), or None for the identity.
        output_values: γ (K, O), not negative.
        output_vectors: U_G (K, O, O).
    """

    input_values: Tensor
    input_vectors: Tensor | None
    output_values: Tensor
    output_vectors: Tensor

    @classmethod
    def of(cls, product: Product) -> Eigenbasis:
        """By eigendecompositions; a diagonal A needs none."""
        inputs, outputs = product
        values, vectors = (inputs, None) if inputs.dim() == 2 else torch.linalg.eigh(inputs)
        output_values, output_vectors = torch.linalg.eigh(outputs)
        return cls(values.clamp_min(0), vectors, output_values.clamp_min(0), output_vectors)

    def values(self) -> Tensor:
        """The eigenvalues γ_o α_i of A ⊗ G: (K, O, I)."""
        return self.output_values[:, :, None] * self.input_values[:, None, :]

    def into(self, matrices: Tensor) -> Tensor:
        """U_Gᵀ D U_A for matrices D (…, K, O, I)."""
        rotated = self.output_vectors.mT @ matrices
        return rotated if self.input_vectors is None else rotated @ self.input_vectors

    def out_of(self, matrices: Tensor) -> Tensor:
        """U_G D U_Aᵀ: the reverse."""
        rotated = self.output_vectors @ matrices
        return rotated if self.input_vectors is None else rotated @ self.input_vectors.mT

    def of_diagonal(self, diagonal: Tensor) -> Tensor:
        """The diagonal, in this basis, of a matrix that is diagonal in the basis of weights.

        Args:
            diagonal: d (K, O, I).

        Returns:
            (U_G ∘ U_G)ᵀ d (U_A ∘ U_A), of the same shape: d itself where all of it is one number.
        """
        rotated = self.output_vectors.square().mT @ diagonal
        return rotated if self.input_vectors is None else rotated @ self.input_vectors.square()
