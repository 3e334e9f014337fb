"""The weights that a hypernetwork generates for a model, no more often than needed."""

from __future__ import annotations

import torch
from torch import Tensor

from avalanche_hnet.core.hypernetworks.network import HyperNetwork
from avalanche_hnet.core.hypernetworks.weight_cache import WeightCache


class GeneratedWeights:
    """Weights of tasks, given by number.

    Without gradients, in evaluation mode and without autocast they are generated once for each
    group of tasks, and kept until anything that they depend on changes.
    """

    def __init__(self, hypernetwork: HyperNetwork) -> None:
        self.hypernetwork = hypernetwork
        self.cache = WeightCache()

    def of(self, tasks: list[int]) -> Tensor:
        """Weights (T, W) of T tasks."""
        if self._may_be_kept():
            return self.cache.get(self.hypernetwork, tasks)
        weights: Tensor = self.hypernetwork(tasks)
        return weights

    def of_one(self, task: int) -> Tensor:
        """Weights (W,) of a task, or more, of which the layout ignores the rest."""
        if self._may_be_kept():
            return self.cache.get(self.hypernetwork, [task])[0]
        return self.hypernetwork.uncut(task)

    def _may_be_kept(self) -> bool:
        hypernetwork = self.hypernetwork
        return not (
            torch.is_grad_enabled()
            or any(module.training for module in hypernetwork.modules())
            or torch.is_autocast_enabled(hypernetwork.output.weight.device.type)
        )
