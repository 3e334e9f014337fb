"""What earlier data say of one layer's weights: a sum of Kronecker products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from avalanche_hnet.core.fisher.kronecker_layer import KroneckerFactor, LayerLayout
from avalanche_hnet.core.posterior.eigenbasis import Eigenbasis
from avalanche_hnet.core.posterior.low_rank import (
    Factor,
    LowRank,
    MaxRank,
    Pair,
    add_products,
    low_rank,
    remainder_of,
)
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
        max_rank: of their factors where the penalty multiplies with them, see :func:`low_rank`.
    """

    layout: LayerLayout
    products: tuple[Product, ...]
    max_rank: MaxRank = None

    @cached_property
    def eigenbasis(self) -> Eigenbasis:
        """Of the product or, if there are several, of the one that is nearest to their sum."""
        single = self.products[0] if len(self.products) == 1 else nearest_product(self.products)
        return Eigenbasis.of(single)

    @cached_property
    def penalty_basis(self) -> Eigenbasis:
        """The same for the products as the penalty has them."""
        if self.max_rank is None:
            return self.eigenbasis
        whole = tuple(Product(*map(_whole, pair)) for pair in self._factors)
        return LayerProducts(self.layout, whole).eigenbasis

    @cached_property
    def _factors(self) -> Sequence[Pair]:
        """A_k and G_k, as the penalty multiplies with them."""
        if self.max_rank is None:
            return self.products
        single = len(self.products) == 1
        bases = [self.eigenbasis] if single else map(Eigenbasis.of, self.products)
        pairs = zip(self.products, bases, strict=True)
        return [_cheaper(product, basis, self.max_rank) for product, basis in pairs]

    def diagonal(self) -> dict[str, Tensor]:
        """That of Σ_k A_k ⊗ G_k, in the shapes of the layer's parameters, by name."""
        total: dict[str, Tensor] = {}
        for inputs, outputs in self.products:
            for name, part in KroneckerFactor(self.layout, inputs, outputs).diagonal().items():
                total[name] = total[name] + part if name in total else part
        return total

    @property
    def remainder(self) -> Tensor | None:
        """What :meth:`add_products` leaves out, by element (K, O, I); None if that is nothing."""
        parts = [part for part in map(remainder_of, self._factors) if part is not None]
        return torch.stack(parts).sum(0) if parts else None

    def add_products(self, total: Tensor, deviation: Tensor, alpha: float) -> None:
        """Add ``alpha · Σ_k G_k D A_k`` for a deviation D, but ``alpha ·`` remainder ∘ D.

        Args:
            total: (K, O, I), changed in place.
            deviation: D (K, O, I).
            alpha: a factor.
        """
        for pair in self._factors:
            add_products(total, deviation, pair, alpha)

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
        return replace(self, layout=layout, products=products)


def accumulated(
    before: LayerProducts | None,
    new: LayerProducts | None,
    gamma: float,
    rank: int | None,
    max_rank: MaxRank = None,
) -> LayerProducts:
    """γ times the sum before and a new one, of the same layer, as at most ``rank`` products."""
    if before is not None and gamma == 1 and (new is None or _adds_nothing(new, before)):
        return before  # the head of another task, with all that is known of its products
    parts = [part for part in (before, new) if part is not None]
    terms = [] if new is None else [*new.products]
    if before is not None:
        root = gamma**0.5
        terms = [*(Product(a * root, g * root) for a, g in before.products), *terms]
    layout = max((part.layout for part in parts), key=lambda layout: len(layout.names))
    n_inputs = max(inputs.shape[-1] for inputs, _ in terms)
    terms = [Product(_resized(inputs, n_inputs), outputs) for inputs, outputs in terms]
    # Terms that are all zero make up no product, but a layer has one.
    return LayerProducts(layout, nearest_products(terms, rank) or (terms[-1],), max_rank)


def _adds_nothing(new: LayerProducts, before: LayerProducts) -> bool:
    return new.layout == before.layout and not any(outputs.any() for _, outputs in new.products)


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


def _cheaper(product: Product, basis: Eigenbasis, max_rank: MaxRank) -> Pair:
    inputs, outputs = product
    by_inputs: Factor = inputs
    if basis.input_vectors is not None:
        by_inputs = low_rank(inputs, basis.input_values, basis.input_vectors, max_rank)
    return by_inputs, low_rank(outputs, basis.output_values, basis.output_vectors, max_rank)


def _whole(factor: Factor) -> Tensor:
    return factor.whole() if isinstance(factor, LowRank) else factor


def _resized(matrices: Tensor, size: int) -> Tensor:
    """Square matrices (K, n, n), or diagonals (K, n), with zeros at their ends, or without those.

    Rows that a layer gains are the last ones, and so is the bias among its inputs.
    """
    missing = size - matrices.shape[-1]
    if missing == 0:
        return matrices
    return F.pad(matrices, (0, missing) * (matrices.dim() - 1))
