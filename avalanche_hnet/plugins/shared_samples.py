"""What plugins do for strategies that several processes train together."""

from __future__ import annotations

from typing import Any

from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate

from avalanche_hnet.data.processes import evaluate_all, shuffle_anew
from avalanche_hnet.plugins.processes import model_with_shared_heads


class SharedSamplesPlugin(SupervisedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """A base of plugins that lets processes share samples as Avalanche's loaders do not."""

    def before_training_epoch(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Let several processes share the samples, in another order in each epoch."""
        shuffle_anew(strategy.dataloader, strategy.clock.train_exp_epochs)

    def before_eval_exp(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Let each of several processes evaluate all samples."""
        evaluate_all(strategy.dataloader)
        model_with_shared_heads(strategy)
