"""What :class:`PriorEWCPlugin` refuses, and what it warns of."""

from __future__ import annotations

import warnings
from typing import Any, NoReturn

from avalanche.training import (
    AETraining,
    Cumulative,
    JointTraining,
    LearningToPrompt,
    VAETraining,
)
from avalanche.training.losses import ICaRLLossPlugin, SCRLoss
from avalanche.training.plugins import (
    BiCPlugin,
    CWRStarPlugin,
    GDumbPlugin,
    PPPloss,
    SupervisedPlugin,
)
from avalanche.training.supervised.naive_object_detection import ObjectDetectionTemplate
from avalanche.training.templates import SupervisedMetaLearningTemplate, SupervisedTemplate
from torch import nn

from avalanche_hnet.core.posterior.gaussian_checks import check_loaded, check_shapes
from avalanche_hnet.core.posterior.protocol import Posterior
from avalanche_hnet.plugins.processes import require_wrapper


def refuse_strategy(plugin: SupervisedPlugin, strategy: SupervisedTemplate) -> None:
    """Refuse strategies and plugins that a posterior over the trained weights would be wrong for.

    Raises:
        ValueError: saying which.
    """
    if len(strategy.experience.dataset) == 0:
        raise ValueError(
            f"experience {strategy.experience.current_experience} is empty; "
            "PriorEWCPlugin needs at least one sample"
        )
    require_wrapper(strategy)
    if isinstance(strategy, JointTraining | Cumulative):
        name = "JointTraining" if isinstance(strategy, JointTraining) else "Cumulative"
        raise ValueError(
            f"PriorEWCPlugin has nothing to protect in {name}, which trains on all data so far; "
            f"use {name} without it"
        )
    if objection := _objection_to_strategy(strategy):
        raise ValueError(f"PriorEWCPlugin does not go with {type(strategy).__name__}: {objection}")
    for other in strategy.plugins:
        if objection := _objection_to_plugin(other, strategy.plugins.index(plugin), strategy):
            raise ValueError(f"PriorEWCPlugin does not go with {type(other).__name__}: {objection}")
    others = [p for p in strategy.plugins if isinstance(p, type(plugin)) and p is not plugin]
    if others:
        raise ValueError(
            f"the strategy has {len(others) + 1} PriorEWCPlugins, which would penalise the same "
            "weights each; give it one"
        )


def _objection_to_strategy(strategy: SupervisedTemplate) -> str | None:
    """Why the loss of a strategy is not the one that penalties are added to, if so."""
    if strategy.optimizer is None:
        return (
            "it has no optimizer, so no weight is trained by gradients and there is nothing to "
            "protect; leave the plugin out"
        )
    if isinstance(strategy, SupervisedMetaLearningTemplate):
        return (
            "its inner and outer updates differentiate losses of their own, which plugins cannot "
            "add a penalty to; leave the plugin out"
        )
    if isinstance(strategy, (AETraining, VAETraining)):
        return (
            "it reconstructs its inputs and does not learn the targets, so there is no likelihood "
            "of the targets to protect; leave the plugin out"
        )
    if isinstance(strategy, ObjectDetectionTemplate):
        return (
            "its model returns losses of whole images, of which no likelihood is known; leave the "
            "plugin out"
        )
    if isinstance(strategy, LearningToPrompt):
        return (
            "the features of a second network choose its prompts, without which the model alone, "
            "which the Fisher is computed of, is another function; leave the plugin out"
        )
    return None


def _objection_to_plugin(other: Any, place: int, strategy: SupervisedTemplate) -> str | None:
    """Why another plugin of the strategy changes what the posterior would be about, if so."""
    if isinstance(other, GDumbPlugin):
        return (
            "it begins each experience with a new model and trains it on a buffer of all classes, "
            "so there is nothing to protect; leave PriorEWCPlugin out"
        )
    if isinstance(other, CWRStarPlugin):
        return (
            "it sets the rows of its layer to weights of its own before and after each experience, "
            "so the penalty would pull them away from these; leave one of the two out"
        )
    scales_loss = isinstance(other, BiCPlugin) and other.lamb == -1
    if scales_loss and strategy.plugins.index(other) > place:
        return (
            "it multiplies the loss so far, the penalties included; put it before PriorEWCPlugin, "
            "as in Naive(..., plugins=[BiCPlugin(...), PriorEWCPlugin()]), or set its lamb"
        )
    return None


def refuse_criterion(criterion: object) -> None:
    """Refuse losses of Avalanche's that are no mean negative logarithm of any likelihood.

    Raises:
        ValueError: naming the criterion.
    """
    if isinstance(criterion, ICaRLLossPlugin):
        raise ValueError(
            "criterion ICaRLLossPlugin takes an earlier model's outputs for the targets of earlier "
            "classes, so it stands for no likelihood of the labels, which the Fisher needs; use "
            "CrossEntropyLoss, with LwFPlugin to distil, or leave PriorEWCPlugin out"
        )
    if isinstance(criterion, (PPPloss, SCRLoss)):
        raise ValueError(
            f"criterion {type(criterion).__name__} compares the samples of a batch with each "
            "other, so it stands for no likelihood of a sample, which the Fisher needs; leave "
            "PriorEWCPlugin out"
        )


def refuse_loop(strategy: SupervisedTemplate) -> NoReturn:
    """Stop a training loop that penalties do not reach.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        f"the training loop of {type(strategy).__name__} does not call before_backward, where "
        "PriorEWCPlugin adds its penalties to the loss; call self._before_backward() before "
        "self.backward(), or leave the plugin out"
    )


def refuse_other_model(posterior: Posterior, model: nn.Module) -> None:
    """Refuse a model that is neither the one of the posterior nor a copy of it.

    Raises:
        ValueError: if its weights are not those of the posterior's mean.
    """
    parameters = dict(model.named_parameters())
    try:
        check_shapes(posterior.mean, parameters)
        check_loaded(posterior.mean, posterior.known, parameters)
    except ValueError as error:
        raise ValueError(
            "this PriorEWCPlugin has learned another model; make a new one for each model"
        ) from error


def warn_of_prior(prior: float, loss: float) -> bool:
    """Say so if the prior dwarfs the loss in the first iteration, and whether it does."""
    dwarfs = prior > max(1.0, 10 * loss)
    if dwarfs:
        warnings.warn(
            f"the prior adds {prior:.3g} to a loss of {loss:.3g}, so that weights shrink before "
            "they learn; prior_mean='initial' centres it on the weights as they are now, and a "
            "larger prior_variance weakens it",
            stacklevel=2,
        )
    return dwarfs
