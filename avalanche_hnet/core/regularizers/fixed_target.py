"""Keep the generated weights where they were before the experience."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from avalanche_hnet.core.common.arguments import one_of
from avalanche_hnet.core.common.evaluation import evaluating
from avalanche_hnet.core.hypernetworks.network import HyperNetwork
from avalanche_hnet.core.regularizers.base import Experience, Penalty
from avalanche_hnet.core.regularizers.deviation import Deviation
from avalanche_hnet.core.regularizers.lookahead import Lookahead
from avalanche_hnet.core.regularizers.output import OutputRegularizer, moved_by

Targets = Literal["recomputed", "stored"]


class FixedTarget(OutputRegularizer):
    """Deviations d_j = h(e_j, θ + Δθ) − h(e_j*, θ*), θ* and e* as they were before the experience.

    von Oswald et al. 2020 (arXiv 1906.00695), equation 2.

    Args:
        beta: strength β.
        lookahead: Δθ is the step that the optimizer is about to take, an SGD step, or None.
        train_previous_embeddings: train the embeddings e_j of earlier tasks, too: they are moved
            by θ's optimizer, and Δ covers them.
        targets: ``"recomputed"`` from θ* in each step, or ``"stored"``: T × W numbers, always in
            the direct form. In single precision, small deviations from stored targets are less
            exact.
        **options: the other arguments of :class:`OutputRegularizer`.

    Raises:
        TypeError, ValueError: if an argument is out of its range or contradicts another.
    """

    def __init__(
        self,
        beta: float = 0.01,
        *,
        lookahead: Lookahead | None = "optimizer",
        train_previous_embeddings: bool = False,
        targets: Targets = "recomputed",
        **options: Any,
    ) -> None:
        one_of(Targets, targets=targets)
        super().__init__(beta, lookahead=lookahead, **options)
        if targets == "stored" and self.form == "quadratic":
            raise ValueError(
                "targets='stored' does not go with form='quadratic', which needs none; leave one "
                "of them at its default"
            )
        self.train_previous_embeddings = train_previous_embeddings
        self.targets: Targets = targets

    def before_experience(self, hypernetwork: HyperNetwork, experience: Experience) -> None:
        """Remember θ*, or the targets themselves."""
        super().before_experience(hypernetwork, experience)
        if not self.is_active:
            return
        with evaluating(hypernetwork.modules()), torch.no_grad():
            if self.targets == "stored":
                self._targets = torch.cat([hypernetwork(task) for task in experience.protected])
            else:  # of the trunk at θ* it is enough to know its outputs
                hidden, weight, bias = hypernetwork.factors(experience.protected)
                self._hidden_before = hidden
                self._output_before = {"output.weight": weight.clone(), "output.bias": bias.clone()}

    def penalty(
        self,
        parameters: Mapping[str, Tensor],
        change: Mapping[str, Tensor] | None = None,
        *,
        through_change: bool = False,
    ) -> Penalty:
        """The penalty at ``parameters`` and its gradient, see :meth:`Regularizer.penalty`.

        It is a function of θ + Δθ, so the gradients with respect to both are the same; and of the
        output layer's difference from what it was, which is formed here, before any product.
        """
        with torch.no_grad():
            moved = dict(moved_by(parameters, change or {}))
            if self.targets == "recomputed" and self.is_active:
                for name, before in self._output_before.items():
                    if name in moved:
                        moved[name] = moved[name] - before
        found = super().penalty(moved)
        if not through_change:
            return found
        of_change = {
            n: found.gradients.get(n, torch.zeros_like(c)) for n, c in (change or {}).items()
        }
        return found._replace(change_gradients=of_change)

    @property
    def _is_quadratic(self) -> bool:
        return self.targets == "recomputed" and super()._is_quadratic

    def _deviation(
        self, tasks: list[int], parameters: Mapping[str, Tensor], change: Mapping[str, Tensor]
    ) -> Deviation:
        hidden = self._factors(tasks, parameters).hidden
        weight_change, bias_change = (
            parameters[name] if name in parameters else torch.zeros_like(before)
            for name, before in self._output_before.items()
        )
        return Deviation(
            self._output_before["output.weight"],
            weight_change,
            bias_change,
            hidden,
            hidden - self._rows_of(tasks, self._hidden_before),
        )

    def _deviating_weights(
        self, tasks: list[int], parameters: Mapping[str, Tensor], change: Mapping[str, Tensor]
    ) -> Tensor:
        if self.targets == "recomputed":
            return super()._deviating_weights(tasks, parameters, change)
        new = self._required_hypernetwork().product(self._factors(tasks, parameters))
        return new - self._rows_of(tasks, self._targets)
