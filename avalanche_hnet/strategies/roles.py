"""Which parameters of a model are trained in an experience, by which optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from avalanche_hnet.core.regularizers import Regularizer
from avalanche_hnet.models.hyper_model import HyperModel


@dataclass(frozen=True, eq=False)
class Roles:
    """The roles of a model's parameters in one experience.

    Attributes:
        theta: θ, all that tasks share and the ``previous`` embeddings, by the model's names.
        own: embeddings and other parameters of the experience's own tasks.
        previous: embeddings of protected tasks, if the regulariser trains them.
        regularized: those of ``theta`` that the hypernetwork trains, by its own names.
        outside_theta: all parameters but ``theta``, whichever task they belong to.
    """

    theta: Mapping[str, nn.Parameter] = field(default_factory=dict)
    own: tuple[nn.Parameter, ...] = ()
    previous: tuple[nn.Parameter, ...] = ()
    regularized: Mapping[str, nn.Parameter] = field(default_factory=dict)
    outside_theta: tuple[nn.Parameter, ...] = ()


def roles_of(
    model: HyperModel, task_labels: Sequence[int], regularizer: Regularizer | None
) -> Roles:
    """The roles in an experience of these tasks; labels unknown to the model are ignored."""
    previous = _previous_embeddings(model, task_labels, regularizer)
    of_tasks = {label: model.task_parameters(label) for label in model.task_labels}
    not_shared = {n for parameters in of_tasks.values() for n in parameters}
    trained_with_theta = set(previous)
    everything = dict(model.named_parameters())
    theta = {
        name: parameter
        for name, parameter in everything.items()
        if name not in not_shared or parameter in trained_with_theta
    }
    return Roles(
        theta=theta,
        own=tuple(
            parameter for label in task_labels for parameter in of_tasks.get(label, {}).values()
        ),
        previous=previous,
        regularized={n: p for n, p in model.of_hypernetwork(theta).items() if p.requires_grad},
        outside_theta=tuple(p for n, p in everything.items() if n not in theta),
    )


def trained_modules(model: HyperModel, task_labels: Sequence[int]) -> list[nn.Module]:
    """The modules that run in an experience of these tasks, as far as they may have buffers."""
    numbers = [str(model.task_number(label)) for label in task_labels]
    return [model.hypernetwork, *(model.networks[n] for n in numbers if n in model.networks)]


def _previous_embeddings(
    model: HyperModel, task_labels: Sequence[int], regularizer: Regularizer | None
) -> tuple[nn.Parameter, ...]:
    if regularizer is None or not (regularizer.train_previous_embeddings and regularizer.beta):
        return ()
    return tuple(
        parameter
        for label in model.trained_task_labels
        if label not in task_labels
        for parameter in model.hypernetwork.task_parameters(model.task_number(label)).values()
    )
