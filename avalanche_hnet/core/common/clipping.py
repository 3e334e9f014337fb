"""Gradients whose elements, or whose norm, are kept below a bound."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from avalanche_hnet.core.common.arguments import positive


@dataclass(frozen=True)
class Clipping:
    """g ← min(1, norm / ‖g‖) g (Pascanu et al. 2013), after each element was cut to ± value.

    Args:
        norm: bound of the Euclidean norm of all gradients together; None: no bound.
        value: bound of the absolute value of each element; None: no bound.

    Raises:
        TypeError, ValueError: if neither is given, or one is not positive and finite.
    """

    norm: float | None = None
    value: float | None = None

    def __post_init__(self) -> None:
        """Refuse what bounds nothing."""
        bounds = {"norm": self.norm, "value": self.value}
        given = {name: bound for name, bound in bounds.items() if bound is not None}
        if not given:
            raise ValueError("norm or value must be given, got None for both")
        positive(**given)

    def apply(self, parameters: Iterable[Tensor]) -> Tensor | float:
        """Clip the gradients of parameters in place; those without one are left out.

        Returns:
            The factor by which their norm was scaled down, one number.
        """
        having = [p for p in parameters if p.grad is not None]
        if self.value is not None:
            for parameter in having:
                _cut(parameter, self.value)
        if self.norm is None:
            return 1.0
        norm = nn.utils.clip_grad_norm_(having, self.norm)
        return (self.norm / (norm + 1e-6)).clamp(max=1.0)

    def of_graph(self, gradient: Tensor, factor: Tensor | float) -> Tensor:
        """A clipped gradient as a function, for autograd, of itself.

        Args:
            gradient: that of one of the parameters, before it was clipped.
            factor: what :meth:`apply` returned; it is constant.
        """
        if self.value is not None:
            gradient = gradient.clamp(-self.value, self.value)
        return gradient * (factor.to(gradient.device) if isinstance(factor, Tensor) else factor)


@torch.no_grad()
def _cut(parameter: Tensor, value: float) -> None:
    gradient = parameter.grad
    assert gradient is not None
    if gradient.is_sparse:
        parameter.grad = gradient = gradient.coalesce()  # an element may be a sum of several
        gradient = gradient.values()
    gradient.clamp_(-value, value)
