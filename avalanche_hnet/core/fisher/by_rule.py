"""Squared per-sample gradients by the rules of layers: one backward pass for a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from avalanche_hnet.core.fisher.layer_rows import LayerRows
from avalanche_hnet.core.fisher.layer_rules import FisherRule
from avalanche_hnet.core.fisher.methods import ByName, at_least_single
from avalanche_hnet.core.fisher.recording import Call, Recording


class NotDifferentiableError(Exception):
    """Some rules cannot be differentiated by the output gradients.

    Args:
        names: of the parameters that they are for.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = sorted(names)
        super().__init__(f"the rules for {', '.join(self.names)} cannot be differentiated")


@dataclass(frozen=True, eq=False)
class ByRule:
    """The rule of each parameter's layer (:func:`register_fisher_rule`).

    Attributes:
        names: of the parameters.
        rules: by the names of layers.
        outputs: of the model for the batch.
        recording: the calls of the layers that they are made of.
    """

    names: Set[str]
    rules: Mapping[str, FisherRule]
    outputs: Tensor
    recording: Recording

    def squares(self, factor: Tensor) -> ByName:
        """See :class:`Method`."""
        return self._scaled_squares(factor, None)

    def gradients(self, factor: Tensor) -> ByName:
        """Σ_n J_nᵀ c_n, by name, of the layers with a Kronecker rule."""
        total: ByName = {}
        for call, inputs, gradient in self._calls(factor):
            rows = self.rules[call.prefix]
            if isinstance(rows, LayerRows):
                of_call = rows.gradients(call.layer, inputs, gradient)
                total |= {call.names[name]: sums for name, sums in of_call.items()}
        return {name: total[name] for name in total if name in self.names}

    def add_weighted(self, total: Tensor, weights: Mapping[str, Tensor], factor: Tensor) -> None:
        """See :class:`Method`.

        Rules give sums over samples only. But a sample's gradient times √u_n adds u_n times its
        squares to the sum, so their weighted sum, differentiated by u, has each sample's share.

        Raises:
            NotDifferentiableError: if that cannot be done.
        """
        share = factor.new_ones(len(factor), requires_grad=True)
        squares = self._scaled_squares(factor, share.sqrt())
        constant = [name for name, square in squares.items() if not square.requires_grad]
        if constant:
            raise NotDifferentiableError(constant)
        if squares:
            weighted = [(weights[name] * square).sum() for name, square in squares.items()]
            total += torch.autograd.grad(weighted, share)[0].to(total.dtype)

    def _scaled_squares(self, factor: Tensor, scale: Tensor | None) -> ByName:
        """The squares of gradients that are multiplied by ``scale`` (B,) first, if it is given."""
        total: ByName = {}
        for call, inputs, gradient in self._calls(factor):
            if scale is not None:
                gradient = gradient * scale.view(-1, *[1] * (gradient.dim() - 1))
            rule = self.rules[call.prefix]
            for own_name, square in rule(call.layer, inputs, gradient).items():
                name = call.names.get(own_name)
                if name is not None and name in self.names:
                    total[name] = total[name] + square if name in total else square
        return total

    def _calls(self, factor: Tensor) -> Iterator[tuple[Call, Tensor, Tensor]]:
        """The calls of the parameters' layers, with their inputs and output gradients."""
        wanted = {
            call.prefix
            for call in self.recording.calls
            if not self.names.isdisjoint(call.names.values())
        }
        for call, gradient in self.recording.output_gradients(self.outputs, factor, wanted):
            gradient, inputs = at_least_single(gradient), call.inputs
            if inputs.is_floating_point():
                inputs = inputs.to(gradient.dtype)
            yield call, inputs, gradient
