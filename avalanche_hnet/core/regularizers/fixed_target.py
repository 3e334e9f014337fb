"""Keep the generated weights where they were before the experience."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from avalanche_hnet.core.common.arguments import one_of
from avalanche_hnet.core.common.checksums import with_checksums
from avalanche_hnet.core.hypernetworks.network import HyperNetwork
from avalanche_hnet.core.hypernetworks.output_layer import Factors
from avalanche_hnet.core.regularizers.base import Experience, FisherSource, Penalty
from avalanche_hnet.core.regularizers.deviation import Deviation
from avalanche_hnet.core.regularizers.lookahead import Lookahead
from avalanche_hnet.core.regularizers.output import OutputRegularizer, moved_by
from avalanche_hnet.core.regularizers.output_change import OF_OUTPUT_LAYER, OutputChange
from avalanche_hnet.core.regularizers.targets import Targets as ExperienceTargets

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

    _optional_entries = ("targets",)

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
        self._targets: ExperienceTargets | None = None  # of an experience, until it is over

    @property
    def _before(self) -> Tensor | Factors | None:
        return None if self._targets is None else self._targets.values

    def before_experience(self, hypernetwork: HyperNetwork, experience: Experience) -> None:
        """Remember θ*, or the targets themselves.

        Those of an experience that was broken off, here or before the state was saved, stay.
        """
        super().before_experience(hypernetwork, experience)
        if not self.is_active:
            self._targets = None
            return
        stored = self.targets == "stored"
        targets = ExperienceTargets.of(hypernetwork, experience.protected, stored=stored)
        if (unfinished := self._targets) is not None:
            if unfinished.tasks == targets.tasks:
                targets = unfinished.like(targets)
            else:
                warnings.warn(
                    "the latest experience was broken off and is not trained on, so the tasks "
                    f"{[*targets.tasks]} (by number) are protected as they are now, not as they "
                    "were before it",
                    stacklevel=2,
                )
        self._targets = targets

    def after_experience(self, source: FisherSource, tasks: tuple[int, ...]) -> None:
        """Forget the targets, and compute Fisher values if they are wanted."""
        super().after_experience(source, tasks)
        self._targets = None

    def state_dict(self) -> dict[str, Any]:
        """See :class:`OutputRegularizer`; in the middle of an experience, its targets, too."""
        state = super().state_dict()
        if self._targets is not None:
            state = with_checksums(state | {"targets": self._targets.state_dict()})
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the regulariser of :meth:`state_dict`."""
        targets = None
        if isinstance(state, Mapping) and "targets" in state:
            targets = ExperienceTargets.from_state(
                state["targets"], stored=self.targets == "stored"
            )
        super().load_state_dict(state)
        self._targets = targets

    def penalty(
        self,
        parameters: Mapping[str, Tensor],
        change: Mapping[str, Tensor] | None = None,
        *,
        through_change: bool = False,
    ) -> Penalty:
        """The penalty at ``parameters`` and its gradient, see :meth:`Regularizer.penalty`.

        It is a function of θ + Δθ, so the gradients with respect to both are the same. Where
        targets are recomputed, the output layer enters by its change since the experience began,
        which is formed here once, before any product, and has the layer's gradient.
        """
        with torch.no_grad():
            moved = moved_by(parameters, change or {})
        of_output: list[str] = []
        output: OutputChange | None = None
        if isinstance(self._before, Factors):
            of_output = [name for name in OF_OUTPUT_LAYER if name in moved]
            output = OutputChange.since(self._before, moved)
        others = {n: p.detach().requires_grad_() for n, p in moved.items() if n not in of_output}
        leaves = [*others.values(), *(() if output is None else output.leaves)]
        value, of_leaves = self._differentiated(leaves, others, output)
        by_name = dict(zip([*others, *of_output], of_leaves, strict=True))
        gradients = {name: by_name[name] for name in parameters}
        if not through_change:
            return Penalty(value, gradients, {})
        of_change = {n: gradients.get(n, torch.zeros_like(c)) for n, c in (change or {}).items()}
        return Penalty(value, gradients, of_change)

    def _quadratic_is_wanted(self, hypernetwork: HyperNetwork, n_protected: int) -> bool:
        recomputed = self.targets == "recomputed"
        return recomputed and super()._quadratic_is_wanted(hypernetwork, n_protected)

    def _deviation(
        self, tasks: list[int], parameters: Mapping[str, Tensor], change: OutputChange | None
    ) -> Deviation:
        """At parameters θ + Δθ without the output layer's, and the layer's change since θ*."""
        assert isinstance(self._before, Factors)
        assert change is not None
        hidden = self._protected.factors(tasks, parameters).hidden
        hidden_before = self._protected.rows_of(tasks, self._before.hidden)
        return Deviation(
            self._before.weight, change.weight, change.bias, hidden, hidden - hidden_before
        )

    def _deviating_weights(
        self, tasks: list[int], parameters: Mapping[str, Tensor], change: OutputChange | None
    ) -> Tensor:
        if not isinstance(self._before, Tensor):
            return super()._deviating_weights(tasks, parameters, change)
        new = self._protected.hypernetwork.product(self._protected.factors(tasks, parameters))
        return new - self._protected.rows_of(tasks, self._before)
