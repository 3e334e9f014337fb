"""Training for a number of iterations instead of epochs."""

from __future__ import annotations

from math import ceil
from typing import Any

from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from tqdm import tqdm


class IterationsPlugin(SupervisedPlugin):
    """Ends every experience after ``iterations`` iterations, in as many epochs as that takes."""

    def __init__(self, iterations: int) -> None:
        super().__init__()
        self.iterations = iterations

    def before_training_exp(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Allow for enough epochs."""
        strategy.train_epochs = ceil(self.iterations / len(strategy.dataloader)) + 1

    def after_training_iteration(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Stop once there were enough."""
        if strategy.clock.train_exp_iterations + 1 >= self.iterations:
            strategy.stop_training()


class ProgressPlugin(SupervisedPlugin):
    """Moves a progress bar with every training iteration."""

    def __init__(self, bar: tqdm[Any]) -> None:
        super().__init__()
        self.bar = bar

    def after_training_iteration(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """One more."""
        self.bar.update()
