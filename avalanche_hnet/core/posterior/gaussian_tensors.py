"""What a diagonal Gaussian posterior holds, as one value that is exchanged as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class GaussianTensors(NamedTuple):
    """Tensors of the parameters' shapes, by name, in float32 at least.

    A precision that counts samples stops at 256 in bfloat16, and overflows in float16.
    """

    prior_mean: dict[str, Tensor]
    mean: dict[str, Tensor]
    precision: dict[str, Tensor]
    known: dict[str, Tensor]

    def aligned(
        self, parameters: Mapping[str, Tensor], prior_variance: float, at_initial: bool
    ) -> GaussianTensors:
        """The same for parameters that are new, have grown, moved, or left; itself if none has.

        Args:
            parameters: all of the model, by name; those that are new and frozen are left out.
            prior_variance: σ² of what is new.
            at_initial: whether the prior's mean is where the parameter is now, or zero.
        """
        changed = {
            name: parameter.detach()
            for name, parameter in parameters.items()
            if (name in self.mean or parameter.requires_grad)
            and not (name in self.mean and fits(self.mean[name], parameter))
        }
        if not changed and self.mean.keys() <= parameters.keys():
            return self
        made = {n: self._made_for(n, p, prior_variance, at_initial) for n, p in changed.items()}
        # In the parameters' order for those that are new, at their place for those that were here.
        names = [n for n in self.mean if n in parameters] + [n for n in made if n not in self.mean]
        old = zip(*(self._of(n) if n not in made else made[n] for n in names), strict=True)
        tensors = [dict(zip(names, of_field, strict=True)) for of_field in old]
        return GaussianTensors(*tensors) if names else GaussianTensors({}, {}, {}, {})

    def _of(self, name: str) -> tuple[Tensor, ...]:
        return tuple(tensors[name] for tensors in self)

    def _made_for(
        self, name: str, parameter: Tensor, prior_variance: float, at_initial: bool
    ) -> tuple[Tensor, ...]:
        """Of the parameter's shape and device, with what there was in their first rows."""
        blank = torch.zeros_like(parameter, dtype=kept_dtype(parameter))
        prior_mean = blank + parameter if at_initial else blank
        made = (
            prior_mean,
            prior_mean.clone(),
            torch.full_like(blank, 1 / prior_variance),
            torch.zeros_like(parameter, dtype=torch.bool),
        )
        if name in self.mean:
            for old, new in zip(self._of(name), made, strict=True):
                new[tuple(slice(size) for size in old.shape)] = old.to(new)
        return made


def fits(mean: Tensor, parameter: Tensor) -> bool:
    """Whether a posterior's tensor has the shape, type and device that its parameter asks for."""
    return (mean.shape, mean.dtype, mean.device) == (
        parameter.shape,
        kept_dtype(parameter),
        parameter.device,
    )


def kept_dtype(parameter: Tensor) -> torch.dtype:
    """The type in which the tensors of a parameter are kept."""
    return torch.promote_types(parameter.dtype, torch.float32)
