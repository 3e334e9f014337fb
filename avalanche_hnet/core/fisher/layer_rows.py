"""The rows that the gradients of a layer are made of, and what they say of its diagonal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from avalanche_hnet.core.fisher.kronecker_layer import LayerLayout
from avalanche_hnet.core.fisher.kronecker_rules import KroneckerRule
from avalanche_hnet.core.fisher.layer_rules import gradients_of_table, squared_products

# At most so many inputs of a layer are copied at a time (16 MiB of float32).
_BUDGET = 2**22


class Rows(NamedTuple):
    """The gradient of sample b is Σ_r g_br a_brᵀ in each group.

    Attributes:
        inputs: a, (K, B, R…, I…) without the bias, or the numbers of rows (1, B, R…) of a table.
        gradients: g, (K, B, R…, O).
    """

    inputs: Tensor
    gradients: Tensor

    def parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(K, b, R, I) and (K, b, R, O) for b samples at a time, in bounded memory."""
        a, g = self
        n_positions = g.shape[2:-1].numel()
        row = a.shape[g.dim() - 1 :]
        step = max(1, _BUDGET // max(1, len(a) * n_positions * row.numel()))
        for part_a, part_g in zip(a.split(step, 1), g.split(step, 1), strict=True):
            leading = len(a), part_g.shape[1], n_positions
            if len(row) > 1:  # patches lie side by side in memory: they are copied as columns
                end = a.dim()
                order = 0, *range(end - len(row), end), *range(1, end - len(row))
                columns = part_a.permute(order).reshape(len(a), row.numel(), *leading[1:])
                part_a = columns.permute(0, 2, 3, 1)
            yield part_a.reshape(*leading, row.numel()), part_g.reshape(*leading, g.shape[-1])


@dataclass(frozen=True)
class LayerRows:
    """A layer's Kronecker rule, with the layout of its parameters.

    Attributes:
        layout: of the parameters.
        rule: see :func:`register_kronecker_rule`.
    """

    layout: LayerLayout
    rule: KroneckerRule

    def rows(self, layer: nn.Module, inputs: Tensor, grads: Tensor) -> Rows:
        """What the rule returns, without a copy.

        Raises:
            ValueError: if that does not fit the layer.
        """
        a, g = self.rule(layer, inputs, grads)
        n_groups, n_outputs, n_inputs = self._sizes(layer)
        leading = (n_groups, len(inputs), *g.shape[2:-1])
        row = a.shape[len(leading) :]
        fits = a.shape[: len(leading)] == leading and g.shape == (*leading, n_outputs)
        if not fits or (len(row) > 0 if self.layout.is_table else row.numel() != n_inputs):
            raise ValueError(
                f"a Kronecker rule of {type(layer).__name__} must return rows (K, B, R…, I…) and "
                f"(K, B, R…, O) with K = {n_groups}, B = {len(inputs)}, I = {n_inputs} in all and "
                f"O = {n_outputs}, got {tuple(a.shape)} and {tuple(g.shape)}"
            )
        if self.layout.is_table:
            g = g * (a >= 0)[..., None]
        return Rows(a, g)

    def __call__(self, layer: nn.Module, inputs: Tensor, grads: Tensor) -> dict[str, Tensor]:
        """As a Fisher rule does: Σ_n (Σ_r g_nr a_nrᵀ)², by the parameters' own names."""
        return self._total(layer, inputs, grads, are_squared=True)

    def gradients(self, layer: nn.Module, inputs: Tensor, grads: Tensor) -> dict[str, Tensor]:
        """Σ_n Σ_r g_nr a_nrᵀ, by the parameters' own names."""
        return self._total(layer, inputs, grads, are_squared=False)

    def _total(
        self, layer: nn.Module, inputs: Tensor, grads: Tensor, *, are_squared: bool
    ) -> dict[str, Tensor]:
        rows = self.rows(layer, inputs, grads)
        if self.layout.is_table:
            matrices = _table_total(rows, self._sizes(layer)[2], are_squared)
        else:
            matrices = _matrix_total(rows, self.layout.bias is not None, are_squared)
        return {
            name.rpartition(".")[2]: total for name, total in self.layout.tensors(matrices).items()
        }

    def _sizes(self, layer: nn.Module) -> tuple[int, int, int]:
        """K, O and I without the bias."""
        weight = layer._parameters["weight"]
        assert weight is not None
        n_groups, n_outputs, n_inputs = self.layout.sizes(weight)
        return n_groups, n_outputs, n_inputs - (self.layout.bias is not None)


def _matrix_total(rows: Rows, has_bias: bool, are_squared: bool) -> Tensor:
    totals = []
    for a, g in rows.parts():
        if has_bias:
            a = torch.cat([a, a.new_ones(*a.shape[:-1], 1)], -1)
        if are_squared:
            totals.append(squared_products(g.permute(1, 0, 3, 2), a.transpose(0, 1)))
        else:
            totals.append(g.flatten(1, 2).mT @ a.flatten(1, 2))
    return sum(totals[1:], totals[0])


def _table_total(rows: Rows, n_rows: int, are_squared: bool) -> Tensor:
    numbers, grads = rows.inputs[0].clamp(min=0), rows.gradients[0]
    numbers, per_sample, _ = gradients_of_table(numbers, grads, n_rows)
    total = grads.new_zeros(n_rows, grads.shape[-1])
    total.index_add_(0, numbers, per_sample.square() if are_squared else per_sample)
    return total.T[None]
