"""The refusal of a loss that is not finite."""

from __future__ import annotations

from typing import NoReturn

from avalanche.training.templates import SupervisedTemplate
from torch import Tensor


def logs_now(strategy: SupervisedTemplate, log_every: int) -> bool:
    """Whether an iteration's losses are published, every so many from each experience's first."""
    return bool(strategy.clock.train_exp_iterations % log_every == 0)


def looks_at_loss(strategy: SupervisedTemplate, log_every: int) -> bool:
    """Whether an iteration's loss is looked at.

    On a GPU that would wait for it, so only where it is published. It stays infinite or NaN, once
    it is.
    """
    return strategy.device.type == "cpu" or logs_now(strategy, log_every)


def refuse_loss(strategy: SupervisedTemplate, parts: str, remedy: str) -> NoReturn:
    """Stop a training whose loss is infinite or not a number.

    Args:
        strategy: in the iteration with this loss, before its step.
        parts: the parts of the loss, with their values.
        remedy: of what a smaller value may help.

    Raises:
        ValueError: always.
    """
    x = strategy.mb_x
    advice = f"A smaller {remedy} may help"
    if isinstance(x, Tensor) and not x.isfinite().all():
        advice = "The inputs of this batch are not finite: look at the data set and its transforms"
    raise ValueError(
        f"the loss is not finite at iteration {strategy.clock.train_exp_iterations} of experience "
        f"{strategy.experience.current_experience}: {parts}; the weights have not been updated "
        f"with it{'' if strategy.loss.is_cpu else ', but maybe before'}. {advice}"
    )
