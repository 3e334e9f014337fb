"""Keep the generated weights where they are before each step."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from avalanche_hnet.core.regularizers.deviation import Deviation
from avalanche_hnet.core.regularizers.output import difference, moved_by
from avalanche_hnet.core.regularizers.step import StepRegularizer


class ValuePreserving(StepRegularizer):
    """Deviations d_j = h(e_j, θ + Δθ) − h(e_j, θ): what the coming step would change.

    von Oswald et al. 2020 (arXiv 1906.00695), appendix. The gradient is that of the whole
    expression, both occurrences of θ included. Small steps one by one may still add up, so
    :class:`FixedTarget` protects better.

    Arguments are those of :class:`StepRegularizer`.
    """

    def _deviation(
        self, tasks: list[int], parameters: Mapping[str, Tensor], change: Mapping[str, Tensor]
    ) -> Deviation:
        new = self._protected.factors(tasks, moved_by(parameters, change))
        return difference(new, self._protected.factors(tasks, parameters))
