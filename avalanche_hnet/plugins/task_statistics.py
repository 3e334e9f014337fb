"""Running statistics for each task, as a plugin for Avalanche's strategies."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Literal

from avalanche.benchmarks import CLExperience
from avalanche.training import JointTraining
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn

from avalanche_hnet.core.common.arguments import one_of
from avalanche_hnet.core.common.processes import take_first
from avalanche_hnet.core.common.task_statistics import TaskStatistics, require_statistics
from avalanche_hnet.data.experiences import labels_or_none, whole
from avalanche_hnet.models.hyper_model import HyperModel
from avalanche_hnet.models.task_inference import TaskInference
from avalanche_hnet.plugins.checkpointing.kinds import register_checkpoint_state
from avalanche_hnet.plugins.processes import model_of

StatisticsKey = Literal["task", "experience"]


class TaskStatisticsPlugin(SupervisedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Each task trains, and is evaluated with, running statistics of its own.

    Regularisation such as :class:`PriorEWCPlugin` protects weights. The running statistics of
    batch normalisation are not weights, and training on a task overwrites those of the tasks
    before, unless each has a set of its own (Henning et al. 2021, arXiv 2103.01133).

    Tasks that were never trained on are evaluated with the statistics of the latest one that was.
    After training, the model itself holds the latest. To call it with those of another task::

        with plugin.statistics.using(model, task_label):
            model(x)

    The place among a strategy's plugins does not matter. With a :class:`TaskInferencePlugin`,
    give that one ``statistics=plugin.statistics``, so that each task is tried with its own.

    Args:
        by: what has statistics of its own: each ``"task"`` label, or each ``"experience"``, by its
            number in the stream, for benchmarks where all have one label (domain-incremental).
            In evaluation it is the number of the experience that is evaluated, in a stream of the
            same order: the accuracy is that with the domain told.

    Attributes:
        statistics: the :class:`TaskStatistics`; save and load them with their ``state_dict``,
            along with the model's.

    Raises:
        ValueError: for another ``by``. At the start of an experience, or when it is evaluated: if
            the model has no layers with running statistics or is a :class:`HyperModel`, which has
            them per task anyway; if batches mix tasks (an experience with several,
            ``JointTraining``, and with ``by="task"`` replay); or if ``by="task"`` and the
            experience has no task labels.
    """

    def __init__(self, by: StatisticsKey = "task") -> None:
        one_of(StatisticsKey, by=by)
        super().__init__()
        self.by: StatisticsKey = by
        self.statistics = TaskStatistics()
        self._trained: dict[int | None, int] = {}  # the key of each experience, by its number
        self._is_training = False  # if so, the model's statistics are newer than those stored
        self._evaluated: ExitStack | None = None

    def before_training(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Put the training's statistics back, if an evaluation was broken off."""
        self.take_away(strategy)

    def before_train_dataset_adaptation(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Refuse what cannot be trained, before anything is changed."""
        model = _model(strategy)
        if any(isinstance(module, HyperModel) for module in model.modules()):
            raise ValueError(
                "TaskStatisticsPlugin has nothing to do for a HyperModel, which keeps the running "
                "statistics of each task itself; leave the plugin out"
            )
        require_statistics(model)
        if isinstance(strategy, JointTraining):
            tasks = sorted({key for e in strategy._experiences for key in self._keys(e)})
            raise ValueError(
                f"TaskStatisticsPlugin does not go with JointTraining, whose batches mix samples "
                f"of all {self.by}s {tasks} and so have no statistics of a single one; leave the "
                "plugin out"
            )
        self._key(strategy.experience)

    def before_training_exp(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Put the statistics of the experience's task in place."""
        self._store(strategy)  # of an experience that was broken off
        self.statistics.begin(_model(strategy), self._key(strategy.experience))
        self._warn_of_one_task(strategy.experience)
        self._is_training = True

    def before_forward(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Refuse batches with samples of several tasks, as replay makes them."""
        if self.by == "experience" or not hasattr(strategy.experience, "task_labels"):
            return
        if strategy.clock.train_exp_iterations == 0:
            tasks = strategy.mb_task_id.unique().tolist()
            if len(tasks) > 1:
                raise ValueError(
                    f"a mini-batch mixes samples of the tasks {tasks}, and so has no statistics of "
                    "a single one; TaskStatisticsPlugin does not go with replay: leave one out"
                )

    def after_training_exp(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Keep what was learned."""
        self._store(strategy)
        self._is_training = False

    def before_eval(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Keep what was learned so far, if this evaluation interrupts a training."""
        self.take_away(strategy)
        self._store(strategy)

    def before_eval_exp(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Put the statistics of the task that is evaluated in place."""
        self.take_away(strategy)
        self._check_inference(strategy.model)
        self._evaluated = ExitStack()
        self._evaluated.enter_context(
            self.statistics.using(_model(strategy), self._key(strategy.experience))
        )

    def after_eval_exp(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Put back what was there before."""
        self.take_away(strategy)

    def _store(self, strategy: SupervisedTemplate) -> None:
        if self._is_training:
            take_first(_model(strategy).buffers())  # each process has its own of the latest batch
            self.statistics.store(_model(strategy))

    def take_away(self, strategy: Any) -> None:
        """Put the model's own statistics back, where an evaluation has ended or was broken off."""
        if self._evaluated is not None:
            self._evaluated.close()
            self._evaluated = None

    def _warn_of_one_task(self, experience: CLExperience) -> None:
        """Say in the second experience if both have the same statistics."""
        key = self._key(experience)
        number = getattr(whole(experience), "current_experience", None)
        if number in self._trained:
            return
        self._trained[number] = key
        if len(self._trained) == 2 and len({*self._trained.values()}) == 1:
            warnings.warn(
                "all experiences share one set of running statistics, as all so far have the task "
                f"label {key}; give each its own (return_task_id=True in Avalanche's benchmarks), "
                "or use TaskStatisticsPlugin(by='experience')",
                stacklevel=3,
            )

    def _key(self, experience: CLExperience) -> int:
        keys = self._keys(experience)
        if len(keys) != 1:
            raise ValueError(
                f"TaskStatisticsPlugin needs experiences of one task each, but this one has the "
                f"task labels {keys}, so its batches mix tasks and have no statistics of a single "
                "one; split it by task, or use by='experience'"
            )
        return keys[0]

    def _keys(self, experience: CLExperience) -> list[int]:
        if self.by == "experience":
            return [int(whole(experience).current_experience)]
        labels = labels_or_none(experience)
        if labels is None:
            labels = labels_or_none(whole(experience))
        if labels is None:
            raise ValueError(
                "the experience has no task_labels, which TaskStatisticsPlugin goes by; use "
                "by='experience', or avalanche.benchmarks.with_task_labels"
            )
        return sorted(labels)

    def _check_inference(self, model: nn.Module) -> None:
        """Task inference that tried all tasks with the statistics of the true one would cheat."""
        if not isinstance(model, TaskInference):
            return
        if model.options.statistics is not self.statistics:
            raise ValueError(
                "task inference needs the statistics of each task that it tries; pass "
                "TaskInferencePlugin(statistics=plugin.statistics), plugin being the "
                "TaskStatisticsPlugin"
            )
        if self.by == "experience":
            raise ValueError(
                "task inference chooses among task labels, but these are statistics by experience; "
                "use TaskStatisticsPlugin(by='task')"
            )


def _state(plugin: TaskStatisticsPlugin) -> dict[str, Any]:
    statistics = plugin.statistics.state_dict()
    return {
        "statistics": statistics,
        "trained": plugin._trained,
        "is_training": plugin._is_training,
    }


def _load_state(plugin: TaskStatisticsPlugin, state: Mapping[str, Any]) -> None:
    plugin.statistics.load_state_dict(state["statistics"])
    plugin._trained, plugin._is_training = state["trained"], state["is_training"]


register_checkpoint_state(TaskStatisticsPlugin, save=_state, load=_load_state)


def _model(strategy: SupervisedTemplate) -> nn.Module:
    """The strategy's model, without the task inference that may stand in front of it."""
    model = model_of(strategy)
    return model.model if isinstance(model, TaskInference) else model
