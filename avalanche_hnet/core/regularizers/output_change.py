"""How far a hypernetwork's output layer is from where it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from avalanche_hnet.core.hypernetworks.output_layer import Factors

OF_OUTPUT_LAYER = ("output.weight", "output.bias")


class OutputChange(NamedTuple):
    """The change of the output layer's parameters, which is none of their values.

    Attributes:
        weight: ΔA (r, C).
        bias: Δb (C,).
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def since(cls, before: Factors, parameters: Mapping[str, Tensor]) -> OutputChange:
        """From ``before`` to ``parameters``, by name: leaves to differentiate by.

        Of parameters that are missing it is a constant zero.
        """
        weight, bias = (
            (parameters[name].detach() - then).requires_grad_()
            if name in parameters
            else torch.zeros_like(then)
            for name, then in zip(OF_OUTPUT_LAYER, (before.weight, before.bias), strict=True)
        )
        return cls(weight, bias)

    @property
    def leaves(self) -> list[Tensor]:
        """The parts that are no constants, in the order of ``OF_OUTPUT_LAYER``."""
        return [part for part in self if part.requires_grad]
