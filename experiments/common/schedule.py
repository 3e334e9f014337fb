"""Learning rates that fall."""

from __future__ import annotations

from math import cos, pi

from avalanche.training.plugins import LRSchedulerPlugin
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def half_cosine(optimizer: Optimizer, iterations: int) -> LRSchedulerPlugin:
    """Lets the rate fall to zero along a half cosine, in so many iterations of each experience."""
    schedule = LambdaLR(optimizer, lambda step: (1 + cos(pi * min(step / iterations, 1))) / 2)
    return LRSchedulerPlugin(schedule, step_granularity="iteration")
