"""The linear layer that generates weights from the trunk's hidden units."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class OutputLayer(nn.Module):
    """z @ weight + bias: a linear layer with the transposed weight.

    It has few inputs and very many outputs. Products with few long rows are several times faster
    than with many short ones.

    Args:
        in_features: r.
        out_features: C.

    Attributes:
        weight: (r, C).
        bias: (C,).
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        drawn = nn.Linear(in_features, out_features)
        self.weight = nn.Parameter(drawn.weight.detach().T.contiguous())
        self.bias = drawn.bias

    def forward(self, z: Tensor) -> Tensor:
        """Outputs (…, C) for ``z`` (…, r)."""
        return F.linear(z, self.weight.T, self.bias)

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


class Factors(NamedTuple):
    """The generated weights before the output layer's product: W_tk = hidden_tk @ weight + bias.

    Attributes:
        hidden: last hidden units (T, K, r), for T tasks and K chunks.
        weight: of the output layer (r, C), C the chunk size.
        bias: of the output layer (C,).
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor

    def product(self) -> Tensor:
        """Generated weights by chunk (T, K, C), of which the last chunk may reach beyond W."""
        return F.linear(self.hidden, self.weight.T, self.bias)
