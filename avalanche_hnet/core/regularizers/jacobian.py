"""Keep the coming step orthogonal to what would change the generated weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.autograd import forward_ad

from avalanche_hnet.core.regularizers.deviation import Deviation
from avalanche_hnet.core.regularizers.output_change import OF_OUTPUT_LAYER
from avalanche_hnet.core.regularizers.step import StepRegularizer


class Jacobian(StepRegularizer):
    """Deviations d_j = J_h(e_j, θ) Δθ: what the coming step would change, to first order.

    von Oswald et al. 2020 (arXiv 1906.00695), appendix. The Jacobian is never formed: one
    forward-mode derivative along Δθ serves all tasks, and its gradient is taken by reverse mode
    over it. Small steps one by one may still add up, so :class:`FixedTarget` protects better.

    Arguments are those of :class:`StepRegularizer`.
    """

    def _deviation(
        self, tasks: list[int], parameters: Mapping[str, Tensor], change: Mapping[str, Tensor]
    ) -> Deviation:
        hypernetwork = self._protected.hypernetwork
        frozen = {n: hypernetwork.get_parameter(n) for n in OF_OUTPUT_LAYER if n not in parameters}
        parameters = {**parameters, **frozen}
        weight_change, bias_change = (
            change.get(name, torch.zeros_like(parameters[name])) for name in OF_OUTPUT_LAYER
        )
        below = {n: p for n, p in parameters.items() if n not in OF_OUTPUT_LAYER}
        below_change = {n: change.get(n, torch.zeros_like(p)) for n, p in below.items()}

        with forward_ad.dual_level():
            duals = {n: forward_ad.make_dual(p, below_change[n]) for n, p in below.items()}
            z, z_change = forward_ad.unpack_dual(self._protected.factors(tasks, duals).hidden)
        if z_change is None:  # nothing below the output layer is trained
            z_change = torch.zeros_like(z)
        weight = parameters[OF_OUTPUT_LAYER[0]]
        return Deviation(weight, weight_change, bias_change, z, z_change)
