"""What earlier data say of one layer's weights: a sum of Kronecker products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from avalanche_hnet.core.fisher.kronecker_layer import KroneckerFactor, LayerLayout
from avalanche_hnet.core.posterior.eigenbasis import Eigenbasis
from avalanche_hnet.core.posterior.nearest_product import (
    Product,
    nearest_product,
    nearest_products,
)


@dataclass(frozen=True, eq=False)
class LayerProducts:
    """Σ_k A_k ⊗ G_k of a layer: the sum over experiences of N times the Fisher, without the prior.

    Attributes:
        layout: how the layer's parameters make up matrices W (K, O, I).
        products: at least one.
    """

    layout: LayerLayout
    products: tuple[Product, ...]

    @cached_property
    def eigenbasis(self) -> Eigenbasis:
        """Of the product or, if there are several, of the one that is nearest to their sum."""
        single = self.products[0] if len(self.products) == 1 else nearest_product(self.products)
        return Eigenbasis.of(single)

    def diagonal(self) -> dict[str, Tensor]:
        """That of Σ_k A_k ⊗ G_k, in the shapes of the layer's parameters, by name."""
        total: dict[str, Tensor] = {}
        for inputs, outputs in self.products:
            for name, part in KroneckerFactor(self.layout, inputs, outputs).diagonal().items():
                total[name] = total[name] + part if name in total else part
        return total

    def times(self, deviation: Tensor, added: Tensor, beta: float, factor: float) -> Tensor:
        """``beta · added + factor · Σ_k G_k D A_k`` for a deviation D (K, O, I)."""
        for inputs, outputs in self.products:
            right = deviation * inputs[:, None, :] if inputs.dim() == 2 else deviation @ inputs
            added = torch.baddbmm(added, outputs, right, beta=beta, alpha=factor)
            beta = 1.0
        return added

    def fitted(self, mean: Mapping[str, Tensor]) -> LayerProducts | None:
        """The same for parameters that have grown, moved or left; itself if none has.

        What is new has zeros. None if the layer has left.

        Raises:
            ValueError: if a layer with groups has grown, since rows would change their groups.
        """
        layout = self.layout
        if layout.weight not in mean:
            return None
        if layout.bias is not None and layout.bias not in mean:
            layout = replace(layout, bias=None)
        weight = mean[layout.weight]
        n_groups, n_outputs, n_inputs = layout.sizes(weight)
        shape = n_groups, n_outputs, n_outputs
        inputs, outputs = self.products[0]
        if n_groups > 1 and outputs.shape != shape:
            raise ValueError(
                f"{layout.weight!r} has {n_groups} groups and has grown to {len(weight)} rows, "
                "which then belong to other groups than before; grow layers without groups, or "
                "use structure='diagonal'"
            )
        is_same = layout is self.layout and (outputs.shape, inputs.shape[-1]) == (shape, n_inputs)
        if is_same and (outputs.dtype, outputs.device) == (weight.dtype, weight.device):
            return self
        products = tuple(
            Product(_resized(a.to(weight), n_inputs), _resized(g.to(weight), n_outputs))
            for a, g in self.products
        )
        return LayerProducts(layout, products)


def accumulated(
    before: LayerProducts | None, new: LayerProducts | None, gamma: float, rank: int | None
) -> LayerProducts:
    """γ times the sum before and a new one, of the same layer, as at most ``rank`` products."""
    parts = [part for part in (before, new) if part is not None]
    terms = [] if new is None else [*new.products]
    if before is not None:
        root = gamma**0.5
        terms = [*(Product(a * root, g * root) for a, g in before.products), *terms]
    layout = max((part.layout for part in parts), key=lambda layout: len(layout.names))
    n_inputs = max(inputs.shape[-1] for inputs, _ in terms)
    terms = [Product(_resized(inputs, n_inputs), outputs) for inputs, outputs in terms]
    # Terms that are all zero make up no product, but a layer has one.
    return LayerProducts(layout, nearest_products(terms, rank) or (terms[-1],))


def products_of(
    factor: KroneckerFactor, n_samples: int, active: Mapping[str, Tensor], like: Tensor
) -> LayerProducts | None:
    """N A ⊗ G between the elements of a layer that are active.

    That is a Kronecker product again where they are some of its units by some of its inputs: all
    of a head's rows, or the rows of a table.

    Args:
        factor: A and G.
        n_samples: N.
        active: boolean masks by name; what is missing is inactive.
        like: for type and device.

    Returns:
        None if the active elements are no such block.
    """
    layout = factor.layout
    mask = active_matrix(layout, active, factor).to(like.device)
    rows, columns = mask.any(2), mask.any(1)
    if not torch.equal(mask, rows[:, :, None] & columns[:, None, :]):
        return None
    inputs, outputs = factor.inputs.to(like), factor.outputs.to(like)
    both = columns if inputs.dim() == 2 else columns[:, :, None] & columns[:, None, :]
    root = n_samples**0.5
    product = Product(
        torch.where(both, inputs * root, 0),
        torch.where(rows[:, :, None] & rows[:, None, :], outputs * root, 0),
    )
    return LayerProducts(layout, (product,))


def active_matrix(
    layout: LayerLayout, active: Mapping[str, Tensor], factor: KroneckerFactor
) -> Tensor:
    """The masks of a layer's parameters as one (K, O, I)."""
    n_groups, n_outputs = factor.outputs.shape[:2]
    blank = torch.zeros(n_groups, n_outputs, factor.inputs.shape[-1], dtype=torch.bool)
    inactive = layout.tensors(blank.to(factor.outputs.device))
    return layout.matrices({name: active.get(name, inactive[name]) for name in layout.names})


def _resized(matrices: Tensor, size: int) -> Tensor:
    """Square matrices (K, n, n), or diagonals (K, n), with zeros at their ends, or without those.

    Rows that a layer gains are the last ones, and so is the bias among its inputs.
    """
    missing = size - matrices.shape[-1]
    if missing == 0:
        return matrices
    return F.pad(matrices, (0, missing) * (matrices.dim() - 1))
