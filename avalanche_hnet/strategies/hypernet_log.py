"""What the training of a hypernetwork publishes under ``Hypernet/``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor

from avalanche_hnet.core.common.processes import mean
from avalanche_hnet.core.regularizers import Penalty
from avalanche_hnet.plugins.publish import publish


def statistics(
    loss: Tensor,
    prior: Tensor | None,
    step: Mapping[Tensor, Tensor],
    regularized: Mapping[str, Tensor],
    penalty: Penalty | None,
) -> dict[str, Tensor]:
    """Losses, norms and the cosine of one iteration, by name.

    Args:
        loss: of the task, one number; several processes publish the mean of theirs.
        prior: its part of ``loss``, if there is one.
        step: Δθ by parameter.
        regularized: the parameters of ``penalty``, by name.
        penalty: of the regulariser, if it is active.
    """
    loss = mean(loss.detach().sum())
    values = {
        "TaskLoss": loss,
        "Regularizer": torch.zeros_like(loss),
        "Loss": loss,
        "StepNorm": _norm(step.values()),
    }
    if prior is not None:
        values["Prior"] = prior.detach()
    if penalty is not None:
        gradients = {regularized[n]: g for n, g in penalty.gradients.items()}
        product = sum((g * step[p]).sum() for p, g in gradients.items() if p in step)
        own_norm = _norm(gradients.values())
        step_norm = _norm(d for p, d in step.items() if p in gradients)
        values |= {
            "Regularizer": penalty.value,
            "Loss": loss + penalty.value,
            "RegularizerGradientNorm": own_norm,
        }
        if own_norm > 0 and step_norm > 0:
            values["RegularizerStepCosine"] = product / (own_norm * step_norm)
    return values


def gradient_norm(theta: Iterable[Tensor]) -> Tensor:
    """The norm of the gradient along which θ is about to step."""
    return _norm(p.grad for p in theta if p.grad is not None)


def publish_statistics(strategy: SupervisedTemplate, values: Mapping[str, Tensor]) -> None:
    """Publish :func:`statistics` and the like."""
    for name, value in values.items():
        publish(strategy, strategy, f"Hypernet/{name}", value.item())


def publish_movement(strategy: SupervisedTemplate, distances: Mapping[int, float]) -> None:
    """Publish how far the weights of each task have moved, by task number."""
    for task, distance in distances.items():
        label = strategy.model.task_labels[task]
        publish(strategy, strategy, f"Hypernet/WeightsMoved/Task{label:03}", distance)


def _norm(tensors: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of all tensors together."""
    norms = [t.detach().norm() for t in tensors]
    return torch.stack(norms).norm() if norms else torch.zeros(())
