"""Keep the coming step orthogonal to what would change the generated weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from avalanche_hnet.core.deviation import Deviation
from avalanche_hnet.core.lookahead import Lookahead
from avalanche_hnet.core.regularizers.output import OutputRegularizer
from avalanche_hnet.core.regularizers.value_preserving import require_lookahead


class Jacobian(OutputRegularizer):
    """Deviations d_j = J_h(e_j, θ) Δθ: what the coming step would change, to first order.

    von Oswald et al. 2020 (arXiv 1906.00695), appendix. The Jacobian is never formed: one
    forward-mode derivative along Δθ serves all tasks, and its gradient is taken by reverse mode
    over it. Small steps one by one may still add up, so
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
        of_output = ("output.weight", "output.bias")
        hypernetwork = self._required_hypernetwork()
        frozen = {n: hypernetwork.get_parameter(n) for n in of_output if n not in parameters}
        parameters = {**parameters, **frozen}
        weight_change, bias_change = (
            change.get(name, torch.zeros_like(parameters[name])) for name in of_output
        )
        below = {n: p for n, p in parameters.items() if n not in of_output}
        below_change = {n: change.get(n, torch.zeros_like(p)) for n, p in below.items()}

        with forward_ad.dual_level():
            duals = {n: forward_ad.make_dual(p, below_change[n]) for n, p in below.items()}
            z, z_change = forward_ad.unpack_dual(self._factors(tasks, duals).hidden)
        if z_change is None:  # nothing below the output layer is trained
            z_change = torch.zeros_like(z)
        return Deviation.between(
            parameters["output.weight"], weight_change, bias_change, z, z_change
        )
