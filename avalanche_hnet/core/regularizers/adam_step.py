"""The step of the optimizer that nearly everybody uses, at half the price of a trial step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer


def is_plain(optimizer: Optimizer, gradients: Mapping[Tensor, Tensor]) -> bool:
    """Whether it is PyTorch's Adam or AdamW, past its first step, without unusual options."""
    if type(optimizer) not in (Adam, AdamW):
        return False
    unusual = ("amsgrad", "maximize", "capturable", "differentiable")
    return (
        all("exp_avg" in optimizer.state.get(p, ()) for p in gradients)
        # On a GPU it would have to be waited for.
        and all(optimizer.state[p]["step"].is_cpu for p in gradients)
        and all(p.is_floating_point() and not g.is_sparse for p, g in gradients.items())
        and not any(
            any(group[name] for name in unusual)
            or any(isinstance(v, Tensor) for v in (group["lr"], *group["betas"]))
            for group in optimizer.param_groups
        )
    )


@torch.no_grad()
def changes(optimizer: Optimizer, gradients: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
    """Δ = −lr m̂ / (√v̂ + ε) by parameter (Kingma & Ba 2015, arXiv 1412.6980, algorithm 1).

    Args:
        optimizer: one that :func:`is_plain`.
        gradients: by parameter.
    """
    change: dict[Tensor, Tensor] = {}
    for group in optimizer.param_groups:
        # Parameters may have taken part in different numbers of steps.
        by_step: dict[float, list[Tensor]] = {}
        for p in group["params"]:
            if p in gradients:
                by_step.setdefault(float(optimizer.state[p]["step"]), []).append(p)
        for n_steps, parameters in by_step.items():
            given = [gradients[p] for p in parameters]
            change |= zip(
                parameters, _changes(optimizer, group, n_steps + 1, parameters, given), strict=True
            )
    return {p: change[p] for p in gradients}


def _changes(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    n_steps: float,
    parameters: list[Tensor],
    gradients: list[Tensor],
) -> list[Tensor]:
    (beta1, beta2), rate, decay = group["betas"], group["lr"], group["weight_decay"]
    decoupled = group.get("decoupled_weight_decay", isinstance(optimizer, AdamW))
    if decay and not decoupled:
        gradients = list(torch._foreach_add(gradients, parameters, alpha=decay))
    first = [optimizer.state[p]["exp_avg"] for p in parameters]
    second = [optimizer.state[p]["exp_avg_sq"] for p in parameters]
    steps = list(torch._foreach_lerp(first, gradients, 1 - beta1))
    scales = list(torch._foreach_mul(second, beta2))
    torch._foreach_addcmul_(scales, gradients, gradients, 1 - beta2)
    torch._foreach_sqrt_(scales)
    # Both corrections of the bias are taken out of the quotient, to go over the memory less often.
    root = (1 - beta2**n_steps) ** 0.5
    torch._foreach_add_(scales, group["eps"] * root)
    torch._foreach_div_(steps, scales)
    torch._foreach_mul_(steps, -rate * root / (1 - beta1**n_steps))
    if decay and decoupled:
        torch._foreach_add_(steps, parameters, alpha=-rate * decay)
    return steps
