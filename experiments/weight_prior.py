"""A prior over the weights that a hypernetwork generates."""

from __future__ import annotations

from typing import Any

from avalanche.training.plugins import SupervisedPlugin

from avalanche_hnet import HypernetTemplate


class WeightPriorPlugin(SupervisedPlugin):
    """Adds the prior N(0, σ² I) over an experience's generated weights w to its loss.

    With N samples, ‖w‖² / (2σ²N) is added to the mean negative log-likelihood, so that w becomes
    a maximum a posteriori estimate, as under :class:`PriorEWCPlugin`. Other tasks' weights are
    left to the regulariser.

    Args:
        variance: σ².
    """

    def __init__(self, variance: float) -> None:
        super().__init__()
        self.variance = variance

    def before_backward(self, strategy: HypernetTemplate, **kwargs: Any) -> None:
        """Add it."""
        experience, model = strategy.experience, strategy.model
        weights = model.hypernetwork([model.task_number(t) for t in experience.task_labels])
        n_samples = len(experience.dataset)
        strategy.loss = strategy.loss + weights.square().sum() / (2 * self.variance * n_samples)
