"""What :class:`PriorEWCPlugin` refuses, and what it warns of."""

from __future__ import annotations

import warnings

from avalanche.training import Cumulative, JointTraining
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn

from avalanche_hnet.core.posterior.gaussian_checks import check_loaded, check_shapes
from avalanche_hnet.core.posterior.protocol import Posterior


def refuse_strategy(plugin: SupervisedPlugin, strategy: SupervisedTemplate) -> None:
    """Refuse strategies and plugins that would count data twice, or have none.

    Raises:
        ValueError: saying which.
    """
    if len(strategy.experience.dataset) == 0:
        raise ValueError(
            f"experience {strategy.experience.current_experience} is empty; "
            "PriorEWCPlugin needs at least one sample"
        )
    if isinstance(strategy, JointTraining | Cumulative):
        name = "JointTraining" if isinstance(strategy, JointTraining) else "Cumulative"
        raise ValueError(
            f"PriorEWCPlugin has nothing to protect in {name}, which trains on all data so far; "
            f"use {name} without it"
        )
    others = [p for p in strategy.plugins if isinstance(p, type(plugin)) and p is not plugin]
    if others:
        raise ValueError(
            f"the strategy has {len(others) + 1} PriorEWCPlugins, which would penalise the same "
            "weights each; give it one"
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
            "this plugin has learned another model; make a new one for each model"
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
