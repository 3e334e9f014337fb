"""The two optimizers of an experience: θ's, and that of the experience's own parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from avalanche.models.dynamic_optimizers import update_optimizer
from torch import nn
from torch.optim import Optimizer

from avalanche_hnet.core.common.optimizers import parameters_of
from avalanche_hnet.core.regularizers.lookahead import fresh_optimizer
from avalanche_hnet.strategies.roles import Roles

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


def hand_over_theta(
    optimizer: Optimizer,
    roles: Roles,
    optimized: dict[str, nn.Parameter] | None,
    *,
    reset_state: bool,
) -> dict[str, nn.Parameter]:
    """Let θ's optimizer have θ, and nothing but θ.

    Args:
        optimizer: θ's.
        roles: of the coming experience.
        optimized: what it had in the last experience, by name; None in the first.
        reset_state: forget the memory of earlier steps.

    Returns:
        What it has now, by name.
    """
    present = set(parameters_of(optimizer))
    optimizer.param_groups[0]["params"] += [p for p in roles.previous if p not in present]
    optimized = update_optimizer(
        optimizer,
        dict(roles.theta),
        optimized,
        # On its first call Avalanche asks for a reset, which would throw loaded state away.
        reset_state=reset_state and optimized is not None,
        remove_params=True,
    )
    _complete_state(optimizer)
    return optimized


def optimizer_of_own(
    parameters: list[nn.Parameter], theta_optimizer: Optimizer, make: MakeOptimizer | None
) -> Optimizer:
    """A new optimizer of the experience's own parameters, by default like θ's.

    Raises:
        TypeError: if ``make`` makes something else.
    """
    if make is None:
        return fresh_optimizer(theta_optimizer, parameters)
    made = make(parameters)
    if not isinstance(made, Optimizer):
        raise TypeError(f"embedding_optimizer must make an optimizer, but made {made!r}")
    return made


def _complete_state(optimizer: Optimizer) -> None:
    """Give parameters without state what the optimizer's constructor gives, as Adagrad's does."""
    for group in optimizer.param_groups:
        without = [p for p in group["params"] if not optimizer.state.get(p)]
        if not without:
            continue
        try:
            initial = fresh_optimizer(optimizer, without).state
        except ValueError:  # the class takes other arguments; it has to cope with an empty state
            continue
        optimizer.state.update(initial)
