"""Which parameters can feel a penalty in implicit steps, and what to say about the others."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor
from torch.optim import Optimizer

from avalanche_hnet.core.common.optimizers import parameters_of
from avalanche_hnet.core.posterior.step_sizes import (
    follows_gradient,
    has_one_rate,
    is_known,
    names_of_known,
)

PenaltyStep = Literal["auto", "implicit", "gradient"]


def names_with_implicit_steps(
    kind: PenaltyStep, optimizer: Optimizer, parameters: Mapping[str, Tensor]
) -> frozenset[str]:
    """Names of the parameters that get implicit steps, if the kind and the optimizer have any."""
    suits = kind == "implicit" or (kind == "auto" and follows_gradient(optimizer))
    if not (suits and is_known(optimizer)):
        return frozenset()
    held = {id(p) for p in parameters_of(optimizer)}
    return frozenset(name for name, p in parameters.items() if id(p) in held)


def warn_of_others(
    optimizer: Optimizer, parameters: Mapping[str, Tensor], implicit: frozenset[str]
) -> bool:
    """Say for which trained parameters, and why, the penalty goes into the gradient.

    Returns:
        Whether there are any.
    """
    others = [n for n, p in parameters.items() if p.requires_grad and n not in implicit]
    if not others:
        return False
    if is_known(optimizer):
        reason = (
            f"the strategy's optimizer does not hold {_listed(others)}, so no size of their "
            "steps is known and their penalty goes into the loss's gradient; give them to the "
            "optimizer, or freeze them with requires_grad_(False)"
        )
    else:
        reason = (
            f"the size of {type(optimizer).__name__}'s steps is not known for its options, so the "
            "penalty goes into the loss's gradient, as with penalty_step='gradient', which is "
            "unstable where learning rate times penalty is large; implicit steps need one of "
            f"{names_of_known()}, with momentum below 1 and without maximize"
        )
    warnings.warn(reason, stacklevel=2)
    return True


def warn_of_layers(kind: PenaltyStep, optimizer: Optimizer, names: Sequence[str]) -> bool:
    """Say for which parameters of layers with Kronecker products, and why, EWC has no such step.

    Where the user has not asked for implicit steps, only if gradient steps may diverge.

    Args:
        kind: what the user has asked for.
        optimizer: its step size is known.
        names: of these parameters.

    Returns:
        Whether it has been said.
    """
    if not names or not (kind == "implicit" or has_one_rate(optimizer)):
        return False
    unstable = ""
    if has_one_rate(optimizer):
        reason = (
            "their layers have several products (rank=1 keeps one), precisions of single elements "
            "beside one, or a weight and a bias that do not move alike (one of them is frozen)"
        )
        unstable = ", which is unstable where learning rate times penalty is large"
    else:
        reason = f"{type(optimizer).__name__} has a step size for each of their elements, SGD one"
    warnings.warn(
        f"there is no implicit step for the Kronecker products of {_listed(names)}: {reason}; "
        f"so EWC goes into the loss's gradient there, as with penalty_step='gradient'{unstable}",
        stacklevel=2,
    )
    return True


def _listed(names: Sequence[str]) -> str:
    return f"{names[0]!r} and {len(names) - 1} others" if len(names) > 1 else repr(names[0])
