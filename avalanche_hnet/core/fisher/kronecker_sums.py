"""The two factors of a layer, summed over batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from avalanche_hnet.core.common.processes import add_up
from avalanche_hnet.core.fisher.gram_sums import GramSums
from avalanche_hnet.core.fisher.input_sums import (
    Convolution,
    InputSums,
    PatchSums,
    RowSums,
    TableSums,
)
from avalanche_hnet.core.fisher.kronecker_layer import KroneckerFactor
from avalanche_hnet.core.fisher.kronecker_rules import convolution
from avalanche_hnet.core.fisher.layer_rows import LayerRows
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
        layer: itself.
        weight_sharing: see above.
    """

    def __init__(self, rows: LayerRows, layer: nn.Module, weight_sharing: WeightSharing) -> None:
        self._rows, self._reduces = rows, weight_sharing == "reduce"
        weight = layer._parameters["weight"]
        assert weight is not None
        n_groups, n_outputs, n_inputs = rows.layout.sizes(weight)
        has_bias, like = rows.layout.bias is not None, at_least_single(weight.detach()[:0])
        self._outputs = GramSums(like, n_groups, n_outputs)
        self._of_all: tuple[Tensor, Tensor] | None = None  # A and the sum of G, of all processes
        self._inputs: InputSums
        if rows.layout.is_table:
            self._inputs = TableSums(like, n_inputs, reduces=self._reduces)
        elif rows.rule is convolution and isinstance(layer, Convolution):
            self._inputs = PatchSums(like, layer, has_bias=has_bias, reduces=self._reduces)
        else:
            sizes = n_groups, n_inputs - has_bias
            self._inputs = RowSums(like, sizes, has_bias=has_bias, reduces=self._reduces)

    def add(self, layer: nn.Module, inputs: Tensor, grads: Tensor, *, with_inputs: bool) -> None:
        """Add what the samples of a call contribute.

        Args:
            layer: that was called.
            inputs: of the call, (B, …).
            grads: by its outputs, (B, …).
            with_inputs: whether the inputs have not been added yet.
        """
        rows = self._rows.rows(layer, inputs, grads)
        g = rows.gradients
        positions = tuple(range(2, g.dim() - 1))
        self._outputs.add(g.sum(positions) if self._reduces and positions else g)
        if with_inputs:
            self._inputs.add(layer, inputs, rows)

    def factor(self, n_samples: int) -> KroneckerFactor:
        """The factors, averaged over so many samples."""
        if self._of_all is None:
            inputs, outputs = self._inputs.mean(), self._outputs.total()
        else:
            inputs, outputs = self._of_all
        return KroneckerFactor(self._rows.layout, inputs, outputs.div_(n_samples))

    def add_up(self) -> None:
        """Put what all processes have added together, in their means of inputs as well."""
        n_samples = self._inputs.n_samples
        inputs, outputs = self._inputs.mean() * n_samples, self._outputs.total()
        of_all = torch.tensor(n_samples)
        add_up([inputs, outputs, of_all])
        self._of_all = inputs / max(1, int(of_all)), outputs


class KroneckerSums:
    """The factors of all layers that have some, summed over batches.

    Args:
        layers: their rules, by name.
        model: that they belong to.
        weight_sharing: see :class:`LayerSums`.
    """

    def __init__(
        self,
        layers: Mapping[str, LayerRows],
        model: nn.Module,
        weight_sharing: WeightSharing,
    ) -> None:
        self._layers = {
            prefix: LayerSums(rows, model.get_submodule(prefix), weight_sharing)
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

    def add_up(self) -> None:
        """Put what all processes have added together."""
        for sums in self._layers.values():
            sums.add_up()

    def factors(self, n_samples: int) -> dict[str, KroneckerFactor]:
        """The factors, averaged over so many samples."""
        return {prefix: sums.factor(n_samples) for prefix, sums in self._layers.items()}
