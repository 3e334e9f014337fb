"""The mathematics of an iteration of a hypernetwork, from the task's loss to θ's full gradient.

von Oswald et al. 2020 (arXiv 1906.00695), section 2. Full gradients are left in the parameters'
``grad``, where plugins and optimizers look for them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_hnet.core.common.clipping import Clipping
from avalanche_hnet.core.common.processes import are_several, average_gradients, averages
from avalanche_hnet.core.regularizers import Penalty, Regularizer
from avalanche_hnet.core.regularizers.lookahead import Lookahead, optimizer_step, sgd_step

ByParameter = dict[Tensor, Tensor]


def weight_prior(
    weights: Iterable[Tensor], variance: float, n_samples: int, scale: float = 1.0
) -> Tensor:
    """``scale`` · ‖w‖² / (2σ²N) of all weights w together, the prior N(0, σ² I) per sample.

    Args:
        weights: vectors of the same length.
        variance: σ².
        n_samples: N.
        scale: how many times the mean negative log-likelihood the loss is.
    """
    return scale / (2 * variance * n_samples) * torch.stack([*weights]).square().sum()


def task_gradients(
    loss: Tensor,
    model: nn.Module,
    theta: Collection[Tensor],
    previous: Iterable[Tensor] = (),
    clippings: Sequence[Clipping] = (),
    differentiable: bool = False,
) -> ByParameter | None:
    """Set ``grad`` of all parameters to the gradient of the task's loss.

    With several processes, each of which has its part of the mini-batch, to the mean of theirs.

    Args:
        loss: one number.
        model: has the parameters, without gradients so far.
        theta: θ.
        previous: those of ``theta`` that get a gradient of zero if the loss gives them none: their
            optimizer remembers others and will move them.
        clippings: of the gradient of all parameters together, one after the other.
        differentiable: return gradients, too.

    Returns:
        θ's gradients with their graph, by parameter, if ``differentiable``; otherwise None.
    """
    gradients: ByParameter | None = None
    if differentiable:
        gradients = _with_graph(loss, model, theta)
    else:
        loss.backward()
    average_gradients(model.parameters())
    if gradients is not None and are_several():
        gradients = _with_values_of_grad(gradients, theta)
    for parameter in previous:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
            if gradients is not None:
                gradients[parameter] = parameter.grad
    for clipping in clippings:
        factor = clipping.apply(model.parameters())
        if gradients is not None:
            gradients = {p: clipping.of_graph(g, factor) for p, g in gradients.items()}
    return gradients


def _with_graph(loss: Tensor, model: nn.Module, theta: Collection[Tensor]) -> ByParameter:
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss.sum(), parameters, create_graph=True, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = None if gradient is None else gradient.detach().clone()
    pairs, wanted = zip(parameters, gradients, strict=True), set(theta)
    return {p: g for p, g in pairs if g is not None and p in wanted}


def _with_values_of_grad(gradients: ByParameter, theta: Iterable[Tensor]) -> ByParameter:
    """The mean gradients in ``grad``, with the graphs of this process's own."""
    means = {p: p.grad for p in theta if p.grad is not None}
    return {
        p: mean + (gradients[p] - gradients[p].detach()) if p in gradients else mean
        for p, mean in means.items()
    }


def look_ahead(
    optimizer: Optimizer,
    gradients: Mapping[Tensor, Tensor] | None,
    lookahead: Lookahead | None,
    differentiable: bool = False,
) -> ByParameter:
    """Δθ, the step along the gradient of the task's loss, by parameter.

    Args:
        optimizer: θ's.
        gradients: by parameter; None for those in ``grad``.
        lookahead: ``"sgd"`` for a step along the negative gradient; the optimizer's otherwise.
        differentiable: whether Δθ is a function of ``gradients`` for autograd.
    """
    step = sgd_step if lookahead == "sgd" else optimizer_step
    return step(optimizer, gradients, differentiable=differentiable)


def penalty_ahead(
    regularizer: Regularizer,
    parameters: Mapping[str, Tensor],
    step: Mapping[Tensor, Tensor],
    scale: float = 1.0,
) -> Penalty:
    """The penalty with its full gradient, what flows through Δθ included.

    Args:
        regularizer: active; it says whether it looks ahead.
        parameters: that it regularises, by name.
        step: Δθ by parameter; what is missing is zero.
        scale: multiplies the penalty.
    """
    change = {n: step[p] for n, p in parameters.items() if p in step}
    penalty = regularizer.penalty(
        parameters,
        None if regularizer.lookahead is None else change,
        through_change=regularizer.differentiable_lookahead,
    )
    if scale != 1:
        penalty = penalty.scaled(scale)
    names = [n for n in penalty.change_gradients if change[n].requires_grad]
    if not names:
        return penalty
    through_change = torch.autograd.grad(
        [change[n] for n in names],
        [*parameters.values()],
        [penalty.change_gradients[n] for n in names],
        allow_unused=True,
    )
    # Each process has only differentiated the gradient of its own part of the mini-batch.
    means = averages(through_change, [*parameters.values()])
    gradients = {
        name: penalty.gradients[name] if more is None else penalty.gradients[name] + more
        for name, more in zip(parameters, means, strict=True)
    }
    return penalty._replace(gradients=gradients)
