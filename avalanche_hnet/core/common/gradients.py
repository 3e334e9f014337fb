"""Gradients that come from elsewhere than the backward pass."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def add_gradients(parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
    """Add ``gradients`` to the parameters' ``grad``, in the parameters' layout."""
    for name, gradient in gradients.items():
        parameter = parameters[name]
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        else:
            parameter.grad += gradient
