"""Modules of Avalanche whose weights cannot have a posterior, each with what to use instead."""

from __future__ import annotations

from functools import singledispatch

from avalanche.models import (
    CosineIncrementalClassifier,
    ExpertGate,
    FeCAMClassifier,
    NCMClassifier,
    Prompt,
    SCRModel,
    SLDAResNetModel,
    TrainEvalModel,
)
from avalanche.models.packnet import PackNetModel
from torch import nn


def refuse_modules(model: nn.Module) -> None:
    """Check that no part of a model is one that a posterior over weights would be wrong for.

    Raises:
        ValueError: naming the module, the reason and what would be right.
    """
    for name, module in model.named_modules():
        why = _objection(module)
        if why is not None:
            place = f" ({name!r})" if name else ""
            raise ValueError(f"PriorEWCPlugin cannot train {type(module).__name__}{place}: {why}")


@singledispatch
def _objection(module: nn.Module) -> str | None:
    return None


@_objection.register
def _(module: CosineIncrementalClassifier) -> str:
    return (
        "as it grows it moves classes from one parameter to another, so one class would be "
        "protected with the posterior of another; use IncrementalClassifier, or CosineLinear with "
        "all classes from the start"
    )


@_objection.register
def _(module: TrainEvalModel) -> str | None:
    if module.eval_classifier is module.train_classifier:
        return None
    return _other_classifier()


@_objection.register
def _(module: SCRModel) -> str:
    return _other_classifier()


@_objection.register(NCMClassifier)
@_objection.register(FeCAMClassifier)
def _(module: nn.Module) -> str:
    return (
        "its output has no gradient, so the likelihood does not reach the weights before it; use "
        "a trained classifier such as IncrementalClassifier"
    )


@_objection.register
def _(module: SLDAResNetModel) -> str:
    return (
        "its features are detached, so no weight is trained by gradients and there is nothing to "
        "protect; leave the plugin out"
    )


@_objection.register
def _(module: ExpertGate) -> str:
    return (
        "each task has a network of its own, so there is nothing to protect, and in evaluation "
        "mode the whole batch chooses which one runs; leave the plugin out"
    )


@_objection.register
def _(module: PackNetModel) -> str:
    return (
        "it freezes the weights of each task itself, so there is nothing to protect, and its "
        "frozen and pruned weights have no gradients for a Fisher; leave the plugin out"
    )


@_objection.register
def _(module: Prompt) -> str | None:
    if not (module.prompt_pool and module.batchwise_prompt):
        return None
    return (
        "with batchwise_prompt=True the whole batch chooses the prompts, so samples have no "
        "gradients of their own; use batchwise_prompt=False"
    )


def _other_classifier() -> str:
    return (
        "in evaluation mode another classifier takes the place of the one that is trained, so the "
        "Fisher would be of weights that the loss does not use; use a model with one classifier "
        "for both"
    )
