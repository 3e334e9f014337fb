"""Variances of a network's outputs under a Kronecker-factored posterior."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_hnet.core.common.evaluation import differentiable, usable
from avalanche_hnet.core.common.samples import Samples, as_samples
from avalanche_hnet.core.fisher.by_loop import ByLoop
from avalanche_hnet.core.fisher.by_vmap import ByVmap
from avalanche_hnet.core.fisher.kronecker_rules import kronecker_rule
from avalanche_hnet.core.fisher.layer_rows import LayerRows
from avalanche_hnet.core.fisher.methods import PerSample, at_least_single
from avalanche_hnet.core.fisher.one_task import OneTask
from avalanche_hnet.core.fisher.output_variance import (
    output_variance,
    samples_at_once,
    unit_factors,
)
from avalanche_hnet.core.fisher.squared_gradients import SquaredGradients, Squares
from avalanche_hnet.core.posterior.layer_covariance import LayerCovariance
from avalanche_hnet.core.posterior.rotated_rows import (
    forms_of_rows,
    forms_of_table,
    rotated_inputs,
)


def kronecker_output_variance(
    model: nn.Module,
    layers: Mapping[str, LayerCovariance],
    variances: Mapping[str, Tensor],
    x: Any,
    task_label: int | None = None,
    is_needed: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs f(x) and the diagonal of J Σ Jᵀ, J their Jacobian by weights of covariance Σ.

    The gradient of a sample by a layer, Σ_r g_r a_rᵀ, becomes Σ_r (U_Gᵀ g_r) (U_Aᵀ a_r)ᵀ in the
    layer's eigenbasis, where Σ is diagonal. So the layer's inputs are rotated once and the
    gradients by its outputs once for each output unit, by the Kronecker rules of layers; where
    these do not hold (:class:`SquaredGradients`), the gradients of single samples are rotated.

    Args:
        model: in evaluation mode; called with ``(x)``, or ``(x, task_label)`` if that is given.
        layers: Σ of layers, by their names.
        variances: Σ of other parameters by name, which those of ``layers`` are left out of.
        x: B inputs, in dimension 0 of a tensor or of each tensor of a structure.
        task_label: of all inputs.
        is_needed: from the outputs to a mask of output units, flattened (U,); the variance of the
            others is left at zero. All by default.

    Returns:
        Outputs and variances, both (B, …), without gradients.
    """
    in_layers = {name for covariance in layers.values() for name in covariance.layout.names}
    rest = {name: v for name, v in variances.items() if name not in in_layers}
    x = as_samples(x)
    outputs, variance = output_variance(model, rest, x, task_label, is_needed)
    if not layers or len(x) == 0:
        return outputs, variance
    names = {name: p for name, p in model.named_parameters() if name in in_layers}
    with differentiable(names.values()):
        x, total = usable(x), at_least_single(usable(variance))
        rows = _rows_of(model, layers)
        method = SquaredGradients(model, names, x, task_label, rows)
        # A sample alone is given twice, since models may drop the dimension of the samples.
        alone = OneTask(model, names, task_label, in_pairs=True)
        step = samples_at_once(method, names, len(x))
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            _Batch.of(method, alone, layers, rows, x[part]).add_to(total[part], is_needed)
    return outputs, total.to(outputs.dtype)


@dataclass(frozen=True, eq=False)
class _Batch:
    """Some samples, with the layers' ways to their share of the variances.

    Attributes:
        outputs: (B, …).
        squares: calls rules with the layers' inputs and gradients.
        by_rule: covariances and rules of the layers whose rules hold here, by name.
        others: covariances of the others.
        by_sample: makes what gets the gradients of samples by the others.
        rotated: inputs of layers with one position, once they have been rotated, by name.
    """

    outputs: Tensor
    squares: Squares
    by_rule: Mapping[str, tuple[LayerCovariance, LayerRows]]
    others: Sequence[LayerCovariance]
    by_sample: Callable[[], PerSample]
    rotated: dict[str, list[Tensor]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        method: SquaredGradients,
        alone: OneTask,
        layers: Mapping[str, LayerCovariance],
        rows: Mapping[str, LayerRows],
        x: Tensor | Samples,
    ) -> _Batch:
        outputs, squares = method.forward(x)
        by_rule = method.choice.by_rule
        trusted = {
            prefix: (covariance, rows[prefix])
            for prefix, covariance in layers.items()
            if prefix in rows and by_rule.issuperset(covariance.layout.names)
        }
        others = [covariance for prefix, covariance in layers.items() if prefix not in trusted]
        names = [name for covariance in others for name in covariance.layout.names]

        def by_sample() -> PerSample:
            kind = ByLoop if any(name in method.choice.by_loop for name in names) else ByVmap
            return kind(names, alone, x)

        return cls(outputs, squares, trusted, others, by_sample)

    def add_to(self, variance: Tensor, is_needed: Callable[[Tensor], Tensor] | None) -> None:
        """Add the layers' share to variances (B, …)."""
        for unit, factor in unit_factors(self.outputs, is_needed):
            variance.view(len(variance), -1)[:, unit] += self._of_unit(factor)

    def _of_unit(self, factor: Tensor) -> Tensor:
        total = factor.new_zeros(len(factor))
        self.squares(factor, {p: partial(self._add_layer, total, p) for p in self.by_rule})
        for rows, gradients in self.by_sample().gradients(factor):
            for covariance in self.others:
                if not gradients.keys().isdisjoint(covariance.layout.names):
                    total[rows] += _forms_of_gradients(covariance, gradients).to(total.dtype)
        return total

    def _add_layer(
        self, total: Tensor, prefix: str, layer: nn.Module, inputs: Tensor, grads: Tensor
    ) -> dict[str, Tensor]:
        """As a rule of the layer; it has no squares to add."""
        covariance, of_layer = self.by_rule[prefix]
        rows = of_layer.rows(layer, inputs, grads)
        if covariance.layout.is_table:
            total += forms_of_table(covariance, rows).to(total.dtype)
            return {}
        kept = self.rotated.setdefault(prefix, [])
        start = 0
        for number, (a, g) in enumerate(rows.parts()):
            is_kept = number < len(kept)
            rotated = kept[number] if is_kept else rotated_inputs(covariance, a)
            if a.shape[2] == 1 and not is_kept:
                kept.append(rotated)
            total[start : start + len(g[0])] += forms_of_rows(covariance, rotated, g).to(
                total.dtype
            )
            start += len(g[0])
        return {}


def _rows_of(model: nn.Module, layers: Mapping[str, LayerCovariance]) -> dict[str, LayerRows]:
    rows = {}
    for prefix, covariance in layers.items():
        rule = kronecker_rule(model.get_submodule(prefix))
        if rule is not None:
            rows[prefix] = LayerRows(covariance.layout, rule)
    return rows


def _forms_of_gradients(covariance: LayerCovariance, gradients: Mapping[str, Tensor]) -> Tensor:
    """Jᵀ Σ J for gradients (b, …) by name, of which those that are missing are zero."""
    layout = covariance.layout
    n_samples = len(next(iter(gradients.values())))
    blank = layout.tensors(torch.zeros_like(covariance.variances))
    own = {n: gradients.get(n, blank[n].expand(n_samples, *blank[n].shape)) for n in layout.names}
    return covariance.forms(torch.vmap(layout.matrices)(own).to(covariance.variances.dtype))
