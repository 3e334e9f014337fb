"""What an experience's model must be like, and is warned of, for a posterior over its weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any
from weakref import ref

from avalanche.models import MultiTaskModule
from avalanche.training import Cumulative
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from avalanche_hnet.core.common.leaves import ids_of_leaves
from avalanche_hnet.core.posterior.protocol import Posterior
from avalanche_hnet.data.experiences import labels_or_none
from avalanche_hnet.models.active import active_elements
from avalanche_hnet.models.hyper_model import HyperModel
from avalanche_hnet.models.refused_modules import refuse_modules
from avalanche_hnet.models.replaced_parameters import Remembered, refuse_replaced, remember
from avalanche_hnet.plugins.prior_ewc_checks import refuse_other_model
from avalanche_hnet.plugins.processes import model_of
from avalanche_hnet.plugins.task_statistics import TaskStatisticsPlugin


class ModelChecks:
    """Refuses models that the posterior would be wrong for; warns once of what a user may forget.

    Its methods are called by the plugin's of the same names, in each experience.
    """

    def __init__(self) -> None:
        self._trained: Remembered = {}
        self._model: Callable[[], nn.Module | None] | None = None
        self._task_labels: set[int] = set()
        self._uses: dict[str, list[tuple[frozenset[int], bool]]] = {}
        """By parameter: the labels of each experience, and whether its loss used it."""
        self._warned: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        # References cannot be copied; a copy knows that it has learned some model.
        return self.__dict__ | {"_trained": {}, "_model": self._model and _no_model}

    def state_dict(self) -> dict[str, Any]:
        """What has been seen, so that nothing is warned of twice."""
        return {"labels": self._task_labels, "uses": self._uses, "warned": self._warned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take in what :meth:`state_dict` has."""
        self._task_labels = {*state["labels"]}
        self._uses = {name: [*uses] for name, uses in state["uses"].items()}
        self._warned = {*state["warned"]}

    def before_adaptation(self, strategy: SupervisedTemplate, posterior: Posterior) -> None:
        """Refuse modules by name, and parameters that were replaced since the last experience."""
        model = model_of(strategy)
        if self._model is not None and self._model() is not model:
            refuse_other_model(posterior, model)
        refuse_modules(model)
        refuse_replaced(posterior, model, self._trained)
        self._task_labels |= _labels(strategy)
        if len(self._task_labels) > 1 and _shares_statistics(strategy):
            self._warn(
                f"{type(model).__name__} has normalisation layers whose running "
                f"statistics are shared by the tasks {sorted(self._task_labels)}: training on one "
                "overwrites those of the others, which PriorEWCPlugin cannot protect; add a "
                "TaskStatisticsPlugin, which keeps a set for each task"
            )

    def before_training(self, strategy: SupervisedTemplate, posterior: Posterior) -> None:
        """Refuse what the adaptation to the experience has made of the model."""
        model = model_of(strategy)
        refuse_modules(model)
        refuse_replaced(posterior, model, self._trained)
        active = active_elements(model, strategy.experience)
        if not any(mask.any() for mask in active.values()):
            raise ValueError(
                f"no parameter of {type(model).__name__} is trained by experience "
                f"{strategy.experience.current_experience}: none requires grad and is active "
                "(see active_elements); PriorEWCPlugin needs at least one, or leave it out"
            )

    def before_backward(self, strategy: SupervisedTemplate) -> None:
        """Look at what the first batch's loss depends on, before penalties are added to it."""
        if strategy.clock.train_exp_iterations > 0:
            return
        model = model_of(strategy)
        if not strategy.loss.requires_grad:
            raise ValueError(
                f"the loss does not depend on any parameter of {type(model).__name__} "
                "that requires grad, so PriorEWCPlugin would train it towards the prior alone; "
                "do not detach its output, or leave the plugin out"
            )
        if isinstance(model, MultiTaskModule) and self._task_labels:
            self._look_for_heads(strategy)

    def after_training(self, model: nn.Module, is_kept: bool) -> None:
        """Remember the model that the posterior belongs to, if it is kept."""
        self._trained, self._model = (remember(model), ref(model)) if is_kept else ({}, None)

    def _look_for_heads(self, strategy: SupervisedTemplate) -> None:
        """Warn of parameters that some tasks' losses use and others' do not, yet are active."""
        leaves, labels = ids_of_leaves(strategy.loss), frozenset(_labels(strategy))
        model = model_of(strategy)
        active = active_elements(model, strategy.experience)
        heads = []
        for name, parameter in model.named_parameters():
            if name in active and active[name].any():
                use = id(parameter) in leaves
                uses = self._uses.setdefault(name, [])
                if any(labels != others and use != other_use for others, other_use in uses):
                    heads.append(name)
                if (labels, use) not in uses:
                    uses.append((labels, use))
        if heads:
            self._warn(
                f"the losses of some tasks do not use {heads}, which look like heads of other "
                "tasks, so PriorEWCPlugin pulls them towards the prior in each experience; give "
                "their module a method active_elements(experience) that leaves them out (see "
                "HasActiveElements), or use MultiHeadClassifier"
            )

    def _warn(self, message: str) -> None:
        kind = message.rpartition("; ")[2]
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, stacklevel=4)


def _no_model() -> None:
    """The model that a copy of the checks has learned."""


def _labels(strategy: SupervisedTemplate) -> set[int]:
    return set(labels_or_none(strategy.experience) or ())


def _shares_statistics(strategy: SupervisedTemplate) -> bool:
    """Whether tasks one after the other overwrite each other's running statistics."""
    mixes_tasks = isinstance(strategy, Cumulative) or len(_labels(strategy)) > 1
    replays = any(hasattr(plugin, "storage_policy") for plugin in strategy.plugins)
    keeps_them = any(isinstance(plugin, TaskStatisticsPlugin) for plugin in strategy.plugins)
    if mixes_tasks or replays or keeps_them:
        return False
    modules = [*model_of(strategy).modules()]
    return not any(isinstance(module, HyperModel) for module in modules) and any(
        isinstance(module, _NormBase) and module.running_mean is not None and module.momentum != 0
        for module in modules
    )
