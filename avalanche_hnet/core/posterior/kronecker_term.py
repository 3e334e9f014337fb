"""The penalty of a Kronecker-factored posterior, as a function of a network's parameters."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from avalanche_hnet.core.common.quadratic import Quadratic
from avalanche_hnet.core.common.value_with_gradient import value_with_gradient
from avalanche_hnet.core.posterior.layer_products import LayerProducts


@dataclass(frozen=True, eq=False)
class LayerTerm:
    """½ s [⟨D, Σ_k G_k D A_k⟩ + Σ p_i D_i²], D = W − W* where that is known and 0 elsewhere.

    Attributes:
        layer: A and G.
        names: of the layer's parameters that take part.
        centre: W* (K, O, I).
        precision: p, one number or (K, O, I): 1/σ², and what is known by element alone.
        known: mask (K, O, I) of what takes part, or None for all.
        factor: s.
    """

    layer: LayerProducts
    names: tuple[str, ...]
    centre: Tensor
    precision: float | Tensor
    known: Tensor | None
    factor: float

    @cached_property
    def is_diagonal_in_eigenbasis(self) -> bool:
        """Whether the term is diagonal in the eigenbasis of A ⊗ G.

        It is for one product with one number as precision, if what takes part are some of the units
        by some of the inputs and A ⊗ G says nothing of others.
        """
        if len(self.layer.products) > 1 or isinstance(self.precision, Tensor):
            return False
        if self.known is None:
            return True
        rows, columns = self.known.any(2), self.known.any(1)
        inputs, outputs = self.layer.products[0]
        of_columns = inputs if inputs.dim() == 2 else inputs.abs().sum(2)
        says_more = (of_columns * ~columns).any() or (outputs.abs().sum(2) * ~rows).any()
        is_block = torch.equal(self.known, rows[:, :, None] & columns[:, None, :])
        return is_block and not bool(says_more)

    @cached_property
    def _centres(self) -> dict[str, Tensor]:
        return self.layer.layout.tensors(self.centre)

    @cached_property
    def _weights(self) -> float | Tensor:
        """All that is by element alone, times s."""
        of_products = self.layer.remainder  # made anew, and kept here alone
        total = self.precision if of_products is None else of_products + self.precision
        return total * self.factor

    def deviation(self, parameters: Mapping[str, Tensor], skip: Container[str] = ()) -> Tensor:
        """D (K, O, I), in the centre's type; zero for the names in ``skip``."""
        layout = self.layer.layout
        deviation = torch.empty_like(self.centre)
        # Into views of it, without a matrix that weight and bias are first copied into.
        for name, part in layout.tensors(deviation).items():
            torch.sub(parameters[name].detach(), self._centres[name], out=part)
        if self.known is not None:
            deviation = deviation.where(self.known, 0)
        if any(name in skip for name in self.names):
            kept = {
                n: torch.full_like(parameters[n], n not in skip, dtype=torch.bool)
                for n in layout.names
            }
            deviation = deviation.where(layout.matrices(kept), 0)
        return deviation

    def gradient(self, deviation: Tensor) -> Tensor:
        """S (Σ_k G_k D A_k + p ∘ D) where that is known: (K, O, I)."""
        gradient = deviation * self._weights
        self.layer.add_products(gradient, deviation, self.factor)
        return gradient if self.known is None else gradient.where(self.known, 0)


class KroneckerTerm:
    """The sum of :class:`LayerTerm` over layers and of a :class:`Quadratic` for the rest.

    Value and gradient come out of the same products: two products of matrices for each layer and
    each A ⊗ G, 2·O·I·(O + I) multiplications and additions, or 4·O·I·(r_A + r_G) where A and G
    have ranks r_A and r_G.

    Attributes:
        layers: the layers.
        rest: of parameters that belong to none of these.
    """

    def __init__(self, layers: Sequence[LayerTerm], rest: Quadratic) -> None:
        self.layers = [*layers]
        self.rest = rest
        # A layer's matrix has both weight and bias, even where one of them takes no part.
        self._in_matrices = frozenset(n for layer in layers for n in layer.layer.layout.names)

    @property
    def names(self) -> list[str]:
        """Of the parameters that take part."""
        return [*self.rest.names, *self.names_of_layers]

    @property
    def names_of_layers(self) -> list[str]:
        """Of those that take part as a layer's."""
        return [name for layer in self.layers for name in layer.names]

    def __call__(self, parameters: Mapping[str, Tensor], skip: Container[str] = ()) -> Tensor:
        """The value at ``parameters``, a scalar that can be differentiated once.

        Args:
            parameters: φ by name, of which all that take part are needed.
            skip: names of parameters that are left out, as if they stood at the mean.
        """
        names = [name for name in self.names if name not in skip]
        if not names:
            return torch.zeros(())
        if not torch.is_grad_enabled():
            value = self.rest(parameters, skip)
            for layer in self._without(skip):
                deviation = layer.deviation(parameters, skip)
                value = _plus_half_dot(value, deviation, layer.gradient(deviation))
            return value
        constant = {name: parameters[name].detach() for name in self._in_matrices.difference(names)}
        compute = partial(self._value_and_gradients, names, constant, skip)
        return value_with_gradient(compute, [parameters[name] for name in names])

    def _without(self, skip: Container[str]) -> list[LayerTerm]:
        return [layer for layer in self.layers if not all(n in skip for n in layer.names)]

    def _value_and_gradients(
        self,
        names: Sequence[str],
        constant: Mapping[str, Tensor],
        skip: Container[str],
        tensors: Sequence[Tensor],
    ) -> tuple[Tensor, list[Tensor]]:
        parameters = {**constant, **dict(zip(names, tensors, strict=True))}
        rest = self.rest.without(skip)
        value, gradients = rest.value_and_gradients([parameters[n] for n in rest.names])
        by_name = dict(zip(rest.names, gradients, strict=True))
        for layer in self._without(skip):
            deviation = layer.deviation(parameters, skip)
            gradient = layer.gradient(deviation)
            value = _plus_half_dot(value, deviation, gradient)
            by_name |= layer.layer.layout.tensors(gradient)
        return value, [by_name[name] for name in names]


def _plus_half_dot(value: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return value.to(left.device).add(left.flatten().dot(right.flatten()), alpha=0.5)
