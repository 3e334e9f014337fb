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
        inputs: a, (K, B, R, I) without the bias, or the numbers of rows (1, B, R) of a table.
        gradients: g, (K, B, R, O).
    """

    inputs: Tensor
    gradients: Tensor


@dataclass(frozen=True)
class LayerRows:
    """A layer's Kronecker rule, with the layout of its parameters.

    Attributes:
        layout: of the parameters.
        rule: see :func:`register_kronecker_rule`.
    """

    layout: LayerLayout
    rule: KroneckerRule

    def parts(self, layer: nn.Module, inputs: Tensor, grads: Tensor) -> Iterator[Rows]:
        """The rows of some samples at a time, in bounded memory.

        Raises:
            ValueError: if the rule returns rows that do not fit the layer.
        """
        a, g = self.rule(layer, inputs, grads)
        weight = layer._parameters["weight"]
        assert weight is not None
        n_groups, n_outputs, n_inputs = self.layout.sizes(weight)
        n_inputs -= self.layout.bias is not None
        n_positions = g.shape[2:-1].numel()
        in_rows: tuple[int, ...] = () if self.layout.is_table else (n_inputs,)
        leading = (n_groups, len(inputs), n_positions)
        if a.numel() != torch.Size((*leading, *in_rows)).numel() or (
            g.numel() != torch.Size((*leading, n_outputs)).numel()
        ):
            raise ValueError(
                f"a Kronecker rule of {type(layer).__name__} must return rows of the shapes "
                f"{(*leading, *in_rows)} and {(*leading, n_outputs)}, got {tuple(a.shape)} and "
                f"{tuple(g.shape)}"
            )
        per_sample = max(1, n_groups * n_positions * (n_inputs if in_rows else 1))
        step = max(1, _BUDGET // per_sample)
        for part_a, part_g in zip(a.split(step, 1), g.split(step, 1), strict=True):
            shape = (n_groups, part_a.shape[1], n_positions)
            rows = Rows(part_a.reshape(*shape, *in_rows), part_g.reshape(*shape, n_outputs))
            if self.layout.is_table:
                rows = rows._replace(gradients=rows.gradients * (rows.inputs >= 0)[..., None])
            yield rows

    def __call__(self, layer: nn.Module, inputs: Tensor, grads: Tensor) -> dict[str, Tensor]:
        """As a Fisher rule does: Σ_n (Σ_r g_nr a_nrᵀ)², by the parameters' own names."""
        return self._total(layer, inputs, grads, are_squared=True)

    def gradients(self, layer: nn.Module, inputs: Tensor, grads: Tensor) -> dict[str, Tensor]:
        """Σ_n Σ_r g_nr a_nrᵀ, by the parameters' own names."""
        return self._total(layer, inputs, grads, are_squared=False)

    def _total(
        self, layer: nn.Module, inputs: Tensor, grads: Tensor, *, are_squared: bool
    ) -> dict[str, Tensor]:
        layout = self.layout
        of_part = _table_total if layout.is_table else _matrix_total
        matrices = torch.zeros(())
        for rows in self.parts(layer, inputs, grads):
            if not layout.is_table and layout.bias is not None:
                ones = rows.inputs.new_ones(*rows.inputs.shape[:-1], 1)
                rows = rows._replace(inputs=torch.cat([rows.inputs, ones], -1))
            weight = layer._parameters["weight"]
            assert weight is not None
            matrices = matrices + of_part(rows, layout.sizes(weight)[2], are_squared)
        return {name.rpartition(".")[2]: total for name, total in layout.tensors(matrices).items()}


def _matrix_total(rows: Rows, n_inputs: int, are_squared: bool) -> Tensor:
    a, g = rows
    if are_squared:
        return squared_products(g.permute(1, 0, 3, 2), a.transpose(0, 1))
    return g.flatten(1, 2).transpose(1, 2) @ a.flatten(1, 2)


def _table_total(rows: Rows, n_inputs: int, are_squared: bool) -> Tensor:
    a, g = rows.inputs[0], rows.gradients[0]
    numbers, per_sample, _ = gradients_of_table(a.clamp(min=0), g, n_inputs)
    total = g.new_zeros(n_inputs, g.shape[-1])
    total.index_add_(0, numbers, per_sample.square() if are_squared else per_sample)
    return total.T[None]
