"""How often the right task is inferred, as Avalanche's metrics report accuracy."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from avalanche.evaluation import GenericPluginMetric, PluginMetric
from avalanche.evaluation.metric_results import MetricResult
from avalanche.evaluation.metric_utils import default_cm_image_creator
from avalanche.evaluation.metrics import Accuracy, StreamConfusionMatrix
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor

from avalanche_hnet.models.task_inference import TaskInference
from avalanche_hnet.plugins.checkpointing.kinds import register_checkpoint_state
from avalanche_hnet.plugins.task_inference import TaskInferencePlugin


def task_inference_metrics(
    *, experience: bool = False, stream: bool = False, confusion_matrix: bool = False
) -> list[PluginMetric]:
    """Metrics of the inferred tasks, for evaluations with a :class:`TaskInferencePlugin`.

    The benchmark's task labels are the truth. An evaluation in which no tasks are inferred, since
    there are none yet, gives no values.

    Args:
        experience: ``TaskInference_Acc_Exp``, the share of samples whose task is inferred
            correctly, of each experience that is evaluated.
        stream: ``TaskInference_Acc_Stream``, of all samples of the stream that is evaluated.
        confusion_matrix: ``TaskInference_ConfusionMatrix_Stream``, the number of samples by true
            task (rows) and inferred task (columns): an image, and for loggers that take no
            images a tensor.

    Returns:
        What was asked for, in this order; nothing by default.

    Raises:
        ValueError: while evaluating, if the model infers no tasks.
    """
    metrics: list[PluginMetric] = []
    if experience:
        metrics.append(_TaskInferenceAccuracy("TaskInference_Acc_Exp", "experience"))
    if stream:
        metrics.append(_TaskInferenceAccuracy("TaskInference_Acc_Stream", "stream"))
    if confusion_matrix:
        metrics.append(_TaskConfusionMatrix())
    return metrics


class _TaskInferenceAccuracy(GenericPluginMetric[float, Accuracy]):
    def __init__(self, name: str, level: str) -> None:
        super().__init__(Accuracy(), reset_at=level, emit_at=level, mode="eval")
        self._name = name
        self._is_empty = True

    def reset(self) -> None:
        super().reset()
        self._is_empty = True

    def update(self, strategy: SupervisedTemplate) -> None:
        inferred = _inferred(strategy)
        if inferred is not None:
            self._metric.update(inferred, strategy.mb_task_id)
            self._is_empty = False

    def _package_result(self, strategy: SupervisedTemplate) -> MetricResult:
        return [] if self._is_empty else super()._package_result(strategy)

    def __str__(self) -> str:
        return self._name


class _TaskConfusionMatrix(StreamConfusionMatrix):
    def __init__(self) -> None:
        image = partial(
            default_cm_image_creator, include_values=True, image_title="tasks: true and inferred"
        )
        super().__init__(image_creator=image)
        self._is_empty = True

    def reset(self) -> None:
        super().reset()
        self._is_empty = True

    def after_eval_iteration(self, strategy: SupervisedTemplate) -> None:
        super(StreamConfusionMatrix, self).after_eval_iteration(strategy)
        inferred = _inferred(strategy)
        if inferred is not None:
            self.update(strategy.mb_task_id.cpu(), inferred.cpu())
            self._is_empty = False

    def _package_result(self, strategy: SupervisedTemplate) -> MetricResult:
        return [] if self._is_empty else super()._package_result(strategy)

    def _get_display_class_order(
        self, exp_cm: Tensor, strategy: SupervisedTemplate
    ) -> Iterable[int]:
        return range(len(exp_cm))  # Avalanche's own needs experiences that know their benchmark

    def __str__(self) -> str:
        return "TaskInference_ConfusionMatrix_Stream"


register_checkpoint_state(_TaskInferenceAccuracy)


def _inferred(strategy: SupervisedTemplate) -> Tensor | None:
    """Labels (B,) of the tasks of a mini-batch; None if the plugin has none to infer yet."""
    if isinstance(strategy.model, TaskInference):
        return strategy.model.inferred_tasks
    if any(isinstance(plugin, TaskInferencePlugin) for plugin in strategy.plugins):
        return None
    raise ValueError(
        f"task_inference_metrics need a model that infers tasks, got a "
        f"{type(strategy.model).__name__}; add a TaskInferencePlugin to the strategy's plugins"
    )
