"""Evaluation without task labels, as a plugin for Avalanche's strategies."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn

from avalanche_hnet.core.common.likelihoods import Bernoulli, Gaussian, likelihood_of
from avalanche_hnet.core.common.processes import unwrapped
from avalanche_hnet.data.experiences import labels_or_none
from avalanche_hnet.models.inference_options import InferenceOptions, takes_arguments_of
from avalanche_hnet.models.task_inference import TaskInference
from avalanche_hnet.plugins.checkpointing.kinds import register_checkpoint_state
from avalanche_hnet.plugins.processes import model_of


class TaskInferencePlugin(SupervisedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """While a strategy evaluates, its model infers the task of each sample.

    By the lowest entropy, as in von Oswald et al. 2020 (arXiv 1906.00695, appendix C.2), or another
    criterion of :class:`TaskInference`, which has their sources.

    Training goes on with the task labels of the benchmark; evaluation uses them only to name
    metrics. All of Avalanche's metrics work as they are, and
    :func:`~avalanche_hnet.metrics.task_inference_metrics` tell how good the inference is.
    In the evaluation with which Avalanche begins a training (``eval_every``), there may be no task
    to choose yet; then the model is evaluated as it is.

    In the middle of an experience, ``posterior`` does not yet know what is being learned. So an
    evaluation there does without it, unless the criterion is agreement or it is a regression:
    these judge the posterior of the experiences before.

    The arguments are those of :class:`TaskInference` after the model. With ``MSELoss`` as the
    strategy's criterion, ``likelihood`` is Gaussian by default. The place among a strategy's
    plugins does not matter. An evaluation that is broken off leaves the inference in
    ``strategy.model`` until the next training or evaluation, but for :class:`PriorEWC` and
    :class:`HypernetTemplate`, which take it away at once.

    Raises:
        TypeError, ValueError: as :class:`TaskInference`.
    """

    @takes_arguments_of(InferenceOptions)
    def __init__(self, options: InferenceOptions) -> None:
        super().__init__()
        self.options = options
        self._begins_training = False
        self._is_training = False
        self._replaced = nn.Module()  # the model, maybe wrapped for several processes
        self._trained: dict[int | None, set[int]] = {}  # task labels by experience

    def before_train_dataset_adaptation(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Refuse a training after which there could be no inference."""
        read = likelihood_of(strategy._criterion)
        if isinstance(read, Bernoulli):
            replace(self.options, likelihood=read)  # which refuses it
        TaskInference(model_of(strategy), **vars(self.options)).refuse_single_task()

    def before_training(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Make sure that the model itself is trained, if an evaluation was broken off."""
        self.after_eval(strategy)
        self._begins_training = True
        self._is_training = False

    def before_training_exp(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """From here on there are tasks."""
        self._begins_training = False
        self._is_training = True
        labels = {*(labels_or_none(strategy.experience) or ())}
        number = getattr(strategy.experience, "current_experience", None)
        self._trained.setdefault(number, labels)
        if len(self._trained) == 2 and len(set().union(*self._trained.values())) == 1:
            warnings.warn(
                "there is no task to infer: all experiences so far have the task labels "
                f"{sorted(labels)}; give each its own (return_task_id=True in Avalanche's "
                "benchmarks)",
                stacklevel=2,
            )

    def after_training_exp(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """From here on the posterior knows the experience."""
        self._is_training = False

    def before_eval(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Put the inference in front of the model."""
        self.after_eval(strategy)
        options = self.options
        learned = None if options.posterior is None else options.posterior.likelihood
        if options.likelihood is None and learned is None:
            read = likelihood_of(strategy._criterion)
            if isinstance(read, Gaussian):
                options = replace(options, likelihood=read)  # whose noise does not matter here
        if self._is_training and not options.judges_posterior:
            options = replace(options, posterior=None)
        inference = TaskInference(model_of(strategy), **vars(options))
        if inference.is_ready or not self._begins_training:
            self._replaced, strategy.model = strategy.model, inference

    def after_eval(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Take it away again."""
        if isinstance(strategy.model, TaskInference):
            # A copy of the strategy may have another model than the plugin remembers.
            is_its_own = unwrapped(self._replaced) is strategy.model.model
            strategy.model = self._replaced if is_its_own else strategy.model.model
        self._replaced = nn.Module()

    def take_away(self, strategy: Any) -> None:
        """Likewise, where an evaluation was broken off."""
        self.after_eval(strategy)


def _state(plugin: TaskInferencePlugin) -> dict[str, Any]:
    generator = plugin.options.generator
    return {
        "begins_training": plugin._begins_training,
        "is_training": plugin._is_training,
        "trained": plugin._trained,
        "generator": None if generator is None else generator.get_state(),
    }


def _load_state(plugin: TaskInferencePlugin, state: Mapping[str, Any]) -> None:
    plugin._begins_training = state["begins_training"]
    plugin._is_training = state["is_training"]
    plugin._trained = state["trained"]
    if plugin.options.generator is not None:
        plugin.options.generator.set_state(state["generator"])


register_checkpoint_state(TaskInferencePlugin, save=_state, load=_load_state)
