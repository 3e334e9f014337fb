"""What is refused before a hypernetwork is trained."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from avalanche.benchmarks import CLExperience
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.optim import Optimizer

from avalanche_hnet.core.common.arguments import at_least, positive
from avalanche_hnet.core.common.likelihoods import Likelihood, check_first_batch
from avalanche_hnet.core.common.processes import unwrapped
from avalanche_hnet.core.regularizers import Penalty, Regularizer
from avalanche_hnet.core.regularizers.lookahead import fresh_optimizer, optimizer_step
from avalanche_hnet.data.experiences import labels_of, stated_classes
from avalanche_hnet.models.hyper_model import HyperModel
from avalanche_hnet.plugins.clip_gradient import ClipGradientPlugin
from avalanche_hnet.plugins.finite_loss import refuse_loss


def check_arguments(
    model: HyperModel,
    regularizer: Regularizer | None,
    prior_variance: float | None,
    clip_grad_norm: float | None,
    train_from_scratch: bool,
    log_every: int,
) -> None:
    """Refuse arguments of ``HypernetTemplate`` that are out of range or contradict each other."""
    if isinstance(unwrapped(model), HyperModel) and unwrapped(model) is not model:
        raise TypeError(
            f"model is wrapped in {type(model).__name__}; pass the HyperModel itself, whose "
            "gradients HypernetTemplate averages over the processes"
        )
    if not isinstance(model, HyperModel):
        raise TypeError(f"model must be a HyperModel, got {type(model).__name__}")
    if regularizer is not None and not isinstance(regularizer, Regularizer):
        raise TypeError(
            "regularizer must be a Regularizer, such as FixedTarget(), or None, got "
            f"{regularizer!r}"
        )
    if prior_variance is not None:
        positive(prior_variance=prior_variance)
    if clip_grad_norm is not None:
        positive(clip_grad_norm=clip_grad_norm)
    at_least(1, log_every=log_every)
    if regularizer is None:
        return
    regularizer.require(model.hypernetwork)
    if train_from_scratch:
        raise ValueError(
            "train_from_scratch=True does not go with a regularizer, which would protect weights "
            "that are thrown away; leave regularizer at None"
        )
    if regularizer.mask_heads and not model.multi_head:
        raise ValueError(
            "mask_heads=True of the regularizer needs a model with multi_head=True: otherwise "
            "each task generates its own head"
        )
    if regularizer.mask_heads and model.units.reuse:
        raise ValueError(
            "mask_heads=True of the regularizer does not go with reuse_units=True of the model: "
            "every task has all output units"
        )
    if regularizer.mask_heads and not model.generated_heads:
        raise ValueError(
            "mask_heads=True of the regularizer needs an output layer that is generated; the "
            "hypernetwork's generate leaves it out"
        )


def check_plugins(
    plugins: Sequence[object], in_memory: object, clip_grad_norm: float | None
) -> None:
    """Refuse regularisers among the plugins, and plugins that an argument stands for as well."""
    for plugin in plugins:
        if isinstance(plugin, Regularizer):
            raise TypeError(
                f"plugins has a {type(plugin).__name__}, which is no plugin; pass it as "
                "regularizer="
            )
    if not isinstance(in_memory, bool):
        raise TypeError(
            f"in_memory must be True or False, got {in_memory!r}; an InMemoryPlugin with other "
            "options belongs among the plugins"
        )
    if clip_grad_norm is not None and any(isinstance(p, ClipGradientPlugin) for p in plugins):
        raise ValueError(
            f"clip_grad_norm={clip_grad_norm} does not go with a ClipGradientPlugin among the "
            "plugins, which clips as well; give one of them"
        )


def check_optimizers(
    optimizer: Optimizer, embedding_optimizer: object, regularizer: Regularizer | None
) -> None:
    """Refuse an optimizer that cannot be copied or differentiated through where that is needed."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            "optimizer must be an Optimizer, such as torch.optim.Adam(model.parameters()), got "
            f"{optimizer!r}"
        )
    if embedding_optimizer is not None and not callable(embedding_optimizer):
        raise TypeError(
            "embedding_optimizer must be a function that makes an optimizer of parameters, such as "
            f"functools.partial(torch.optim.Adam, lr=1e-3), got {embedding_optimizer!r}"
        )
    if embedding_optimizer is None:
        fresh_optimizer(optimizer, [nn.Parameter(torch.zeros(1))])  # or say what to do
    if regularizer is not None and regularizer.differentiable_lookahead:
        matrix = nn.Parameter(torch.ones(2, 2))
        try:
            trial = fresh_optimizer(optimizer, [matrix])
        except ValueError:  # then the first step that looks ahead will tell
            return
        optimizer_step(trial, {matrix: torch.ones(2, 2, requires_grad=True)}, differentiable=True)


def check_likelihood(likelihood: object) -> None:
    """Refuse anything but a likelihood."""
    if likelihood is not None and not isinstance(likelihood, Likelihood):
        raise TypeError(f"likelihood must be a Likelihood, got {likelihood!r}")


def check_experience(experience: CLExperience) -> None:
    """Refuse an experience without task labels or without samples."""
    labels_of(experience)
    if len(experience.dataset) == 0:
        raise ValueError(
            f"experience {experience.current_experience} is empty; HypernetTemplate needs "
            "at least one sample"
        )


def check_knowledge(regularizer: Regularizer, earlier: Sequence[int]) -> None:
    """Refuse a regulariser that knows nothing of the tasks, by label, that it is to protect."""
    if earlier and regularizer.is_active and regularizer.knows_nothing:
        raise ValueError(
            f"{type(regularizer).__name__} knows nothing of the tasks {earlier}: they "
            "were learned without it; load its state_dict with the model's"
        )


def warn_of_no_protection(regularizer: Regularizer, task_labels: Sequence[int]) -> None:
    """Warn that all experiences have the same tasks, where a regulariser is of no use then."""
    if not regularizer.is_log_prior:
        warnings.warn(
            f"nothing is protected: all experiences so far have the task labels {task_labels}; "
            "give each its own (return_task_id=True in Avalanche's benchmarks)",
            stacklevel=4,
        )


def check_task_loss(strategy: SupervisedTemplate) -> None:
    """Refuse a task's loss that is not finite, or that nothing can be learned from."""
    if not strategy.loss.requires_grad:
        raise ValueError(
            "the loss does not depend on any parameter of the model that requires grad, neither "
            "the hypernetwork's nor the task's own, so there is nothing to train; do not freeze "
            "all of them, and do not detach the output"
        )
    if not strategy.loss.isfinite().all():
        refuse_loss(strategy, f"task's loss {strategy.loss.sum().item()}", "learning rate")


def check_penalty(strategy: SupervisedTemplate, penalty: Penalty) -> None:
    """Refuse a regulariser's value that is not finite."""
    if not penalty.value.isfinite():
        refuse_loss(strategy, f"regulariser {penalty.value.item()}", "beta of the regulariser")


def check_targets(strategy: SupervisedTemplate, likelihood: Likelihood | None) -> None:
    """Refuse a first batch whose targets do not fit the model's outputs, where that is known."""
    check_first_batch(
        likelihood,
        strategy._criterion,
        strategy.mb_output,
        strategy.mb_y,
        stated_classes(strategy.experience),
    )
