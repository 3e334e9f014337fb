"""The one pass over the data that every Fisher is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_hnet.core.common.processes import add_up
from avalanche_hnet.core.fisher.batches import single_task_batches
from avalanche_hnet.core.fisher.kronecker_layer import KroneckerFactor
from avalanche_hnet.core.fisher.kronecker_sums import KroneckerSums, WeightSharing
from avalanche_hnet.core.fisher.layer_rows import LayerRows
from avalanche_hnet.core.fisher.layer_rules import FisherRule, layers_with_rules
from avalanche_hnet.core.fisher.methods import ByName, at_least_single
from avalanche_hnet.core.fisher.options import FisherOptions, fisher_factors
from avalanche_hnet.core.fisher.share import is_shared, lost_anywhere, total_of
from avalanche_hnet.core.fisher.squared_gradients import SquaredGradients
from avalanche_hnet.core.fisher.trial import N_TRIAL


class UntrustedLayersError(Exception):
    """Some layers' Kronecker rules do not hold in a batch.

    Args:
        prefixes: the layers' names.
    """

    def __init__(self, prefixes: frozenset[str]) -> None:
        self.prefixes = prefixes
        super().__init__(f"the Kronecker rules of {', '.join(sorted(prefixes))} do not hold")


@dataclass(frozen=True, eq=False)
class FisherMeans:
    """Averages over all samples.

    Attributes:
        squares: of their squared gradients by parameters of no layer of ``factors``, by name.
        factors: by the names of layers.
    """

    squares: dict[str, Tensor]
    factors: dict[str, KroneckerFactor]


def wanted_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Those that require grad, by name.

    Raises:
        ValueError: if there are none.
    """
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError("model has no parameter that requires grad, so it has no Fisher")
    return parameters


def fisher_means(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    batches: Iterable[Any],
    options: FisherOptions,
    layers: Mapping[str, LayerRows] | None = None,
    weight_sharing: WeightSharing = "expand",
) -> FisherMeans:
    """Go through the batches once; each process through its own, of a :class:`Share`.

    Args:
        model: in evaluation mode.
        parameters: those that the Fisher is of, by name.
        batches: see :func:`diagonal_fisher`.
        options: which Fisher.
        layers: those that get factors, by name; none by default.
        weight_sharing: see :func:`kronecker_factors`.

    Raises:
        UntrustedLayersError: if a rule of ``layers`` does not hold in one of the batches.
        ValueError: if there are no samples.
    """
    layers = layers or {}
    rules: dict[str, FisherRule] = {**layers_with_rules(dict(model.named_modules())), **layers}
    factored = {name for rows in layers.values() for name in rows.layout.names}
    squares = _Sum()
    kronecker = KroneckerSums(layers, model, weight_sharing)
    first, others = (kronecker.rules(with_inputs=is_first) for is_first in (True, False))
    device = next(iter(parameters.values())).device
    n_samples, lost, several = 0, frozenset[str](), is_shared(batches)
    methods: dict[tuple[int | None, int, tuple[Any, ...]], SquaredGradients] = {}
    for x, y, labels in single_task_batches(model, batches, device):
        label = None if labels is None else int(labels[0])
        inputs = (label, min(len(x), N_TRIAL), x.shape[1:])
        if inputs not in methods:
            methods[inputs] = SquaredGradients(model, parameters, x, labels, rules)
        method = methods[inputs]
        outputs, squared = method.forward(x)
        if lost := _lost(layers, method.choice.by_rule):
            break
        adding = first
        for factor in fisher_factors(outputs, y, options):
            squares.add(squared(factor, adding))
            adding = others
        n_samples += len(x)
    wanted = {n: p for n, p in parameters.items() if n not in factored}
    if several:
        lost, n_samples = lost_anywhere(lost, layers), total_of(n_samples)
    if lost:
        raise UntrustedLayersError(lost)
    if n_samples == 0:
        raise ValueError("batches must yield at least one sample, got none")
    if several:
        squares.add_up(wanted)
        kronecker.add_up()
    means = {n: squares.mean(n, p, n_samples) for n, p in wanted.items()}
    return FisherMeans(means, kronecker.factors(n_samples))


class _Sum:
    """Sums of tensors by name, which are not copied before there are several."""

    def __init__(self) -> None:
        self._totals: ByName = {}
        self._of_several: set[str] = set()

    def add(self, terms: ByName) -> None:
        for name, term in terms.items():
            if name in self._of_several:
                self._totals[name] += term
            elif name in self._totals:
                self._totals[name] = self._totals[name] + term
                self._of_several.add(name)
            else:
                self._totals[name] = term

    def add_up(self, like: Mapping[str, Tensor]) -> None:
        """Replace the sums by those of all processes, which may have terms of other names."""
        self._totals = {
            name: torch.zeros_like(total)
            if name not in self._totals
            else self._totals[name].to(total, copy=True)
            for name, total in ((n, at_least_single(p.detach())) for n, p in like.items())
        }
        add_up(self._totals.values())

    def mean(self, name: str, like: Tensor, number: int) -> Tensor:
        """The sum divided by a number, as ``like`` but in float32 at least; 0 of no terms."""
        like = at_least_single(like.detach())
        if name not in self._totals:
            return torch.zeros_like(like)
        return (self._totals[name] / number).to(like)


def _lost(layers: Mapping[str, LayerRows], by_rule: frozenset[str]) -> frozenset[str]:
    """The layers whose rules do not hold."""
    return frozenset(p for p, rows in layers.items() if not by_rule.issuperset(rows.layout.names))
