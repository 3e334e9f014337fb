"""What is refused at the first batch, before any weight has changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_hnet.core.common.likelihoods.base import Likelihood
from avalanche_hnet.core.common.likelihoods.categorical import Categorical
from avalanche_hnet.core.common.likelihoods.criterion_class import as_module


def check_first_batch(
    likelihood: Likelihood | None,
    criterion: Any,
    outputs: object,
    targets: object,
    classes: Iterable[int] | None = None,
) -> None:
    """Refuse outputs and targets that a criterion's likelihood is no likelihood of.

    Args:
        likelihood: of which the criterion is the mean negative logarithm, or None where that is
            not known; then only what can be said without it is checked.
        criterion: the training loss.
        outputs: of the model, for B samples.
        targets: of the samples.
        classes: of the whole experience; by default the labels among the targets.

    Raises:
        ValueError: naming what would be right.
    """
    for argument, values in (("outputs", outputs), ("targets", targets)):
        if not isinstance(values, Tensor) and likelihood is not None:
            raise ValueError(
                f"{argument} must be a tensor, got {_shown(values)}; let the "
                f"{'model return its logits' if argument == 'outputs' else 'data set return one'} "
                "alone"
            )
    if likelihood is None or not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        return
    if outputs.dim() == 0 or len(outputs) == 0:
        raise ValueError(
            f"outputs have the shape {tuple(outputs.shape)}; a batch must have at least one "
            "sample, in dimension 0"
        )
    if not outputs.is_floating_point():
        raise ValueError(f"outputs must be real numbers, got {outputs.dtype}")
    if isinstance(likelihood, Categorical) and not targets.is_floating_point():
        _check_classes(likelihood, outputs, targets, classes)
    with torch.no_grad():
        likelihood.check(outputs, targets)
        module = as_module(criterion)
        if isinstance(module, nn.BCEWithLogitsLoss) and not targets.is_floating_point():
            raise ValueError(
                f"targets of BCEWithLogitsLoss must be real numbers, got {targets.dtype}; let the "
                "data set return them as targets.float()"
            )
        if isinstance(module, nn.NLLLoss):
            _check_normalised(outputs)
    if isinstance(likelihood, Categorical) and as_module(criterion) is criterion:
        _check_dimension_of_classes(likelihood, criterion, outputs, targets)


def _shown(values: object) -> str:
    keys = f" with {sorted(map(str, values))}" if isinstance(values, dict) else ""
    return f"a {type(values).__name__}{keys}"


def _check_classes(
    likelihood: Categorical, outputs: Tensor, targets: Tensor, classes: Iterable[int] | None
) -> None:
    """Refuse classes of the experience that the model has no output for."""
    if outputs.dim() < 2 or outputs.shape[1] == 1:
        return  # no logits of classes at all, as the likelihood will say
    if targets.shape != outputs.shape[:1] + outputs.shape[2:]:
        return
    known = {int(c) for c in targets.unique().tolist()} - {likelihood.ignore_index}
    stated = {int(c) for c in classes or ()} - {likelihood.ignore_index}
    if known <= stated:  # otherwise a transform has renamed them, or there are replayed ones
        known = stated
    if known and not 0 <= min(known) <= max(known) < outputs.shape[1]:
        raise ValueError(
            f"targets are class labels from {min(known)} to {max(known)}, but the model has "
            f"{outputs.shape[1]} outputs; give the target more, or count the classes of each "
            "experience from zero (class_ids_from_zero_in_each_exp=True)"
        )


def _check_normalised(outputs: Tensor) -> None:
    """Refuse outputs that are no log-probabilities, as NLLLoss needs them."""
    excess = outputs.double().logsumexp(1).abs().max().item()
    if not excess < 100 * torch.finfo(outputs.dtype).eps:
        raise ValueError(
            "criterion NLLLoss needs log-probabilities, but the probabilities that the outputs are "
            "the logarithms of do not sum to one; end the model with LogSoftmax(dim=1), or use "
            "criterion=torch.nn.CrossEntropyLoss()"
        )


def _check_dimension_of_classes(
    likelihood: Categorical, criterion: Any, outputs: Tensor, targets: Tensor
) -> None:
    """Refuse a criterion of the user's own that takes the last dimension for the classes.

    Where it is as large as dimension 1, only the gradient of the criterion can tell.
    """
    if isinstance(criterion, (nn.CrossEntropyLoss, nn.NLLLoss)) or outputs.dim() < 3:
        return
    if outputs.shape[1] != outputs.shape[-1] or targets.is_floating_point():
        return
    with torch.enable_grad():
        leaf = outputs.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(criterion(leaf, targets), leaf)
    # That of a softmax sums to zero over the classes.
    over = {dim: float(gradient.sum(dim).abs().max()) for dim in (1, -1)}
    if over[-1] < 1e-3 * over[1]:
        raise ValueError(
            f"outputs of shape {tuple(outputs.shape)} have their classes last, but Categorical "
            "wants them in dimension 1; let the model return outputs.movedim(-1, 1), and use "
            "CrossEntropyLoss() without flattening"
        )
