"""What an optimizer holds."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """All parameters of the optimizer, in its order."""
    return [p for group in optimizer.param_groups for p in group["params"]]
