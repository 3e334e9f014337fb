"""The two factors of a layer, summed over batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from avalanche_hnet.core.fisher.kronecker_layer import KroneckerFactor
from avalanche_hnet.core.fisher.layer_rows import LayerRows, Rows
from avalanche_hnet.core.fisher.layer_rules import FisherRule
from avalanche_hnet.core.fisher.methods import at_least_single

WeightSharing = Literal["expand", "reduce"]


class LayerSums:
    """A and G of one layer, whose weight a sample uses at R positions.

    "expand" takes positions for samples, A = 1/(NR) Σ_n Σ_r a aᵀ and G = 1/N Σ_n Σ_r g gᵀ;
    "reduce" takes them together, A = 1/N Σ_n ā āᵀ with ā the mean of a over positions and
    G = 1/N Σ_n ĝ ĝᵀ with ĝ the sum of g (Eschenhagen et al. 2023, arXiv 2311.00636, section 3).

    In A, N counts the samples that the layer was called for (a head: those of its task), in G all
    of them, so that A ⊗ G is an average over all.

    Args:
        rows: the layer's rule.
        weight: the layer's weight.
        weight_sharing: see above.
    """

    def __init__(self, rows: LayerRows, weight: Tensor, weight_sharing: WeightSharing) -> None:
        self._rows, self._reduces = rows, weight_sharing == "reduce"
        n_groups, n_outputs, n_inputs = rows.layout.sizes(weight)
        weight = at_least_single(weight.detach())
        side = () if rows.layout.is_table else (n_inputs,)
        self._inputs = weight.new_zeros(n_groups, n_inputs, *side)
        self._outputs = weight.new_zeros(n_groups, n_outputs, n_outputs)
        self._n_samples = 0

    def add(self, layer: nn.Module, inputs: Tensor, grads: Tensor, *, with_inputs: bool) -> None:
        """Add what the samples of a call contribute.

        Args:
            layer: that was called.
            inputs: of the call, (B, …).
            grads: by its outputs, (B, …).
            with_inputs: whether the inputs have not been added yet.
        """
        if with_inputs:
            self._n_samples += len(inputs)
        for rows in self._rows.parts(layer, inputs, grads):
            if not rows.gradients.numel():  # sequences of no length
                continue
            _add_gram(self._outputs, _over_positions(rows.gradients, self._reduces, "sum"))
            if with_inputs and self._rows.layout.is_table:
                self._inputs[0] += self._frequencies(rows.inputs[0])
            elif with_inputs:
                self._add_inputs(rows)

    def factor(self, n_samples: int) -> KroneckerFactor:
        """The factors, averaged over so many samples."""
        return KroneckerFactor(
            self._rows.layout,
            _symmetric(self._inputs / max(1, self._n_samples)),
            _symmetric(self._outputs / n_samples),
        )

    def _add_inputs(self, rows: Rows) -> None:
        a = _over_positions(rows.inputs, self._reduces, "mean")
        if not self._reduces:
            a = a / rows.inputs.shape[2] ** 0.5
        if self._rows.layout.bias is not None:
            one = rows.inputs.shape[2] ** -0.5 if not self._reduces else 1.0
            a = torch.cat([a, a.new_full((*a.shape[:-1], 1), one)], -1)
        _add_gram(self._inputs, a)

    def _frequencies(self, numbers: Tensor) -> Tensor:
        """The diagonal of Σ a aᵀ, a a one in the place of a row's number: (B, R) to (I,)."""
        n_rows = self._inputs.shape[1]
        sample = torch.arange(len(numbers), device=numbers.device)[:, None]
        pairs, counts = (sample * n_rows + numbers)[numbers >= 0].unique(return_counts=True)
        shares = counts.to(self._inputs.dtype) / numbers.shape[1]
        if self._reduces:
            shares = shares.square()
        return torch.zeros_like(self._inputs[0]).index_add_(0, pairs % n_rows, shares)


class KroneckerSums:
    """The factors of all layers that have some, summed over batches.

    Args:
        layers: their rules, by name.
        parameters: of the model, by name.
        weight_sharing: see :class:`LayerSums`.
    """

    def __init__(
        self,
        layers: Mapping[str, LayerRows],
        parameters: Mapping[str, Tensor],
        weight_sharing: WeightSharing,
    ) -> None:
        self._layers = {
            prefix: LayerSums(rows, parameters[rows.layout.weight], weight_sharing)
            for prefix, rows in layers.items()
        }

    def rules(self, *, with_inputs: bool) -> dict[str, FisherRule]:
        """Rules of the layers, of which the sums are made instead of squares."""

        def adding(sums: LayerSums) -> FisherRule:
            def add(layer: nn.Module, inputs: Tensor, grads: Tensor) -> dict[str, Tensor]:
                sums.add(layer, inputs, grads, with_inputs=with_inputs)
                return {}

            return add

        return {prefix: adding(sums) for prefix, sums in self._layers.items()}

    def factors(self, n_samples: int) -> dict[str, KroneckerFactor]:
        """The factors, averaged over so many samples."""
        return {prefix: sums.factor(n_samples) for prefix, sums in self._layers.items()}


def _over_positions(rows: Tensor, reduces: bool, how: Literal["mean", "sum"]) -> Tensor:
    """(K, B, R, X) to (K, B·R, X) or, if positions are taken together, (K, B, X)."""
    if not reduces:
        return rows.flatten(1, 2)
    return rows.mean(2) if how == "mean" else rows.sum(2)


def _add_gram(total: Tensor, rows: Tensor) -> None:
    """Add Σ x xᵀ over rows (K, M, X) to (K, X, X)."""
    rows = rows.to(total.dtype)
    if len(rows) == 1:  # one matrix is faster than a batch of one
        total[0].addmm_(rows[0].T, rows[0])
    else:
        total.baddbmm_(rows.transpose(1, 2), rows)


def _symmetric(matrices: Tensor) -> Tensor:
    """To the last digit; diagonals (K, X) as they are."""
    return matrices if matrices.dim() == 2 else (matrices + matrices.mT) / 2
