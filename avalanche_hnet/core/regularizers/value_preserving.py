"""Keep the generated weights where they are before each step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from avalanche_hnet.core.deviation import Deviation
from avalanche_hnet.core.lookahead import Lookahead
from avalanche_hnet.core.regularizers.output import OutputRegularizer, difference, moved_by


class ValuePreserving(OutputRegularizer):
    """Deviations d_j = h(e_j, θ + Δθ) − h(e_j, θ): what the coming step would change.

    von Oswald et al. 2020 (arXiv 1906.00695), appendix. The gradient is that of the whole
    expression, both occurrences of θ included. Small steps one by one may still add up, so
    :class:`FixedTarget` protects better.

    Args:
        beta: strength β.
        lookahead: Δθ is the step that the optimizer is about to take, or an SGD step.
        **options: the other arguments of :class:`OutputRegularizer`.

    Raises:
        TypeError, ValueError: if an argument is out of its range or contradicts another.
    """

    def __init__(
        self, beta: float = 0.01, *, lookahead: Lookahead = "optimizer", **options: Any
    ) -> None:
        require_lookahead(self, lookahead)
        super().__init__(beta, lookahead=lookahead, **options)

    def _deviation(
        self, tasks: list[int], parameters: Mapping[str, Tensor], change: Mapping[str, Tensor]
    ) -> Deviation:
        new = self._factors(tasks, moved_by(parameters, change))
        return difference(new, self._factors(tasks, parameters))


def require_lookahead(regularizer: OutputRegularizer, lookahead: Lookahead | None) -> None:
    """Refuse None where the penalty would always be zero.

    Raises:
        ValueError: naming the argument and the regulariser.
    """
    if lookahead is None:
        raise ValueError(
            f"{type(regularizer).__name__} needs a lookahead of 'optimizer' or 'sgd': with "
            "lookahead=None it is always zero"
        )
