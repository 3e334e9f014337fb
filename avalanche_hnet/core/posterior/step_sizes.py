"""How far an optimizer moves each element per unit of a gradient that lasts.

A gradient g that stays the same makes the optimizers of this module move an element by −η g in each
step, momentum included. η is a number divided by a tensor's root, its value, or nothing.

Where an element has had no gradient yet, a second moment of zero says nothing of its steps, and
η is the rate alone, as for SGD. With rate / ε, a prior would bring the weights of units that are
dead in the first batches to zero at once, and they would stay dead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import (
    SGD,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
)


class StepSize(NamedTuple):
    """η = rate / (√moment + ε) of the elements of one parameter, or rate alone.

    Attributes:
        rate: a positive number.
        moment: of the parameter's shape, the optimizer's own; None for the rate alone.
        eps: ε.
        is_squared: whether the moment is of squares. If not, there is no root, and it contains ε.
    """

    rate: float
    moment: Tensor | None = None
    eps: float = 0.0
    is_squared: bool = True

    def scale(self, moment: Tensor) -> Tensor:
        """η = rate / scale: √moment + ε, or 1 where there has been no gradient.

        Args:
            moment: the whole or some elements of it.

        Returns:
            A new tensor.
        """
        if self.is_squared:
            return torch.threshold_(moment.sqrt(), 0.0, 1.0).add_(self.eps)
        return torch.threshold(moment, self.eps, 1.0)


Rule = Callable[[Mapping[str, Any], Mapping[str, Any]], StepSize]


def step_size(optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor) -> StepSize | None:
    """The step size of a parameter in one of its optimizer's groups, after a step.

    Returns:
        None if the optimizer needs a state for its step and has not moved the parameter yet.

    Raises:
        KeyError: if the optimizer is none of those that :func:`is_known`.
    """
    rule, needs_state = _RULES[type(optimizer)]
    state = optimizer.state.get(parameter, {})
    is_missing = needs_state and not state.get("step", 0)
    return None if is_missing else rule(group, state)


def follows_gradient(optimizer: Optimizer) -> bool:
    """Whether steps grow with the gradient, in proportion and without bound.

    The others divide it by its own size. (RAdam does so only after its first steps.)
    """
    return type(optimizer) in (SGD, RAdam)


def has_one_rate(optimizer: Optimizer) -> bool:
    """Whether all elements of a parameter have the same step size, whatever their gradients."""
    return type(optimizer) is SGD and is_known(optimizer)


def shared_rate(
    optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor, n_more: int = 0
) -> float | None:
    """The step size of a parameter if it is one number for all elements, as RAdam's is at first.

    Args:
        optimizer: any.
        group: that of its groups which the parameter is in.
        parameter: one that it moves.
        n_more: 1 for its next step, 0 for the one that it has made.
    """
    if has_one_rate(optimizer):
        return _sgd(group, {}).rate
    if type(optimizer) is RAdam and is_known(optimizer):
        n_steps = float(optimizer.state.get(parameter, {}).get("step", 0)) + n_more
        if n_steps == 0 or _length(group, n_steps) <= _SHORTEST:
            return float(group["lr"])
    return None


def is_known(optimizer: Optimizer) -> bool:
    """Whether :func:`step_size` knows the optimizer's step, its options included."""
    return type(optimizer) in _RULES and not any(
        group.get("maximize", False)
        or group.get("momentum", 0) >= 1
        or group.get("centered", False)  # a gradient that lasts has no variance to divide by
        for group in optimizer.param_groups
    )


def names_of_known() -> str:
    """The names of these optimizers, for messages."""
    return ", ".join(sorted(kind.__name__ for kind in _RULES))


def _sgd(group: Mapping[str, Any], state: Mapping[str, Any]) -> StepSize:
    momentum = group["momentum"]
    accumulated = (1 - group["dampening"]) / (1 - momentum) if momentum else 1
    return StepSize(float(group["lr"]) * accumulated)


def _adam(group: Mapping[str, Any], state: Mapping[str, Any]) -> StepSize:
    second = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
    return _by_second_moment(group, state, second)


def _nadam(group: Mapping[str, Any], state: Mapping[str, Any]) -> StepSize:
    return _by_second_moment(group, state, state["exp_avg_sq"])


def _by_second_moment(
    group: Mapping[str, Any], state: Mapping[str, Any], second: Tensor
) -> StepSize:
    """η = lr / (√v̂ + ε), with the correction of the bias of v taken out of the quotient."""
    root = (1 - group["betas"][1] ** float(state["step"])) ** 0.5
    return StepSize(float(group["lr"]) * root, second, group["eps"] * root)


def _radam(group: Mapping[str, Any], state: Mapping[str, Any]) -> StepSize:
    """Liu et al. 2020, algorithm 2: no second moment as long as its variance is too large."""
    n_steps, beta2 = float(state["step"]), group["betas"][1]
    longest, length = 2 / (1 - beta2) - 1, _length(group, n_steps)
    if length <= _SHORTEST:
        return StepSize(float(group["lr"]))
    rectified = (
        (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    ) ** 0.5
    root = (1 - beta2**n_steps) ** 0.5
    return StepSize(float(group["lr"]) * rectified * root, state["exp_avg_sq"], group["eps"])


# Of the average that RAdam divides by; over fewer steps it takes none.
_SHORTEST = 5


def _length(group: Mapping[str, Any], n_steps: float) -> float:
    """ρ_t: over how many steps RAdam's second moment is an average."""
    beta2 = group["betas"][1]
    return float(2 / (1 - beta2) - 1 - 2 * n_steps * beta2**n_steps / (1 - beta2**n_steps))


def _adamax(group: Mapping[str, Any], state: Mapping[str, Any]) -> StepSize:
    return StepSize(float(group["lr"]), state["exp_inf"], group["eps"], is_squared=False)


def _rmsprop(group: Mapping[str, Any], state: Mapping[str, Any]) -> StepSize:
    rate = float(group["lr"]) / (1 - group["momentum"])
    return StepSize(rate, state["square_avg"], group["eps"])


def _adagrad(group: Mapping[str, Any], state: Mapping[str, Any]) -> StepSize:
    rate = float(group["lr"]) / (1 + (float(state["step"]) - 1) * group["lr_decay"])
    return StepSize(rate, state["sum"], group["eps"])


# By exact class, since a subclass may step otherwise; with whether the rule needs a state.
_RULES: dict[type[Optimizer], tuple[Rule, bool]] = {
    SGD: (_sgd, False),
    Adam: (_adam, True),
    AdamW: (_adam, True),
    NAdam: (_nadam, True),
    RAdam: (_radam, True),
    Adamax: (_adamax, True),
    RMSprop: (_rmsprop, True),
    Adagrad: (_adagrad, True),
}
