"""Evaluation without task labels, as a plugin for Avalanche's strategies."""

from __future__ import annotations

from typing import Any

from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate

from avalanche_hnet.models.task_inference import TaskInference


class TaskInferencePlugin(SupervisedPlugin):
    """While a strategy evaluates, its model infers the task of each sample.

    Training goes on with the task labels of the benchmark; in evaluation none is looked at, but
    to name metrics. All of Avalanche's metrics work as they are, and
    :func:`~avalanche_hnet.metrics.task_inference_metrics` tell how good the inference is.
    In the evaluation with which Avalanche begins a training (``eval_every``), there may be no task
    to choose yet; then the model is evaluated as it is.

    Args:
        **options: the arguments of :class:`TaskInference` after the model.

    Raises:
        TypeError, ValueError: as :class:`TaskInference`, when an evaluation begins.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options
        self._begins_training = False

    def before_training(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Make sure that the model itself is trained, if an evaluation was broken off."""
        self.after_eval(strategy)
        self._begins_training = True

    def before_training_exp(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """From here on there are tasks."""
        self._begins_training = False

    def before_eval(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Put the inference in front of the model."""
        self.after_eval(strategy)
        inference = TaskInference(strategy.model, **self.options)
        if inference.is_ready or not self._begins_training:
            strategy.model = inference

    def after_eval(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Take it away again."""
        if isinstance(strategy.model, TaskInference):
            strategy.model = strategy.model.model
