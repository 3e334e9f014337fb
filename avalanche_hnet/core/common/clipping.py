"""Gradients whose elements, or whose norm, are kept below a bound."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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

    @torch.no_grad()
    def apply(self, parameters: Iterable[Tensor]) -> Tensor | float:
        """Clip the gradients of parameters in place; those without one are left out.

        Returns:
            The factor by which their norm was scaled down, one number.
        """
        gradients = [_elements(p) for p in parameters if p.grad is not None]
        if self.value is not None:
            for gradient in gradients:
                gradient.clamp_(-self.value, self.value)
        if self.norm is None or not gradients:
            return 1.0
        factor = (self.norm / (_norm(gradients) + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor.to(gradient.device))
        return factor

    def of_graph(self, gradient: Tensor, factor: Tensor | float) -> Tensor:
        """A clipped gradient as a function, for autograd, of itself.

        Args:
            gradient: that of one of the parameters, before it was clipped.
            factor: what :meth:`apply` returned; it is constant.
        """
        if self.value is not None:
            gradient = gradient.clamp(-self.value, self.value)
        return gradient * (factor.to(gradient.device) if isinstance(factor, Tensor) else factor)


def _elements(parameter: Tensor) -> Tensor:
    """The elements of a parameter's gradient, in the memory where they lie."""
    gradient = parameter.grad
    assert gradient is not None
    if not gradient.is_sparse:
        return gradient
    parameter.grad = gradient.coalesce()  # before, an element may be a sum of several
    return parameter.grad.values()


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    """Of all together, in float32 at least: in float16 it overflows at 65,504."""
    device = gradients[0].device
    wide = (torch.promote_types(g.dtype, torch.float32) for g in gradients)
    norms = [
        torch.linalg.vector_norm(g, dtype=dtype).to(device)
        for g, dtype in zip(gradients, wide, strict=True)
    ]
    return torch.linalg.vector_norm(torch.stack(norms))
