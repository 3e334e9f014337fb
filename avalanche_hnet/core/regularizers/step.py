"""Regularisers of what the coming step would change in the generated weights."""

from __future__ import annotations

from typing import Any

from avalanche_hnet.core.regularizers.lookahead import Lookahead
from avalanche_hnet.core.regularizers.output import OutputRegularizer


class StepRegularizer(OutputRegularizer):
    """An :class:`OutputRegularizer` whose deviations come from Δθ alone.

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
        if lookahead is None:
            raise ValueError(
                f"{type(self).__name__} needs a lookahead of 'optimizer' or 'sgd': with "
                "lookahead=None it is always zero"
            )
        super().__init__(beta, lookahead=lookahead, **options)
