"""What is refused at the first batch, before any weight has changed."""

from __future__ import annotations

from collections.abc import Iterable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_hnet.core.common.likelihoods.base import Likelihood
from avalanche_hnet.core.common.likelihoods.categorical import Categorical
from avalanche_hnet.core.common.likelihoods.criterion_class import as_module
from avalanche_hnet.core.common.logits import logits_of, with_logits
from avalanche_hnet.core.common.structures import described


def check_first_batch(
    likelihood: Likelihood | None,
    criterion: Any,
    returned: Any,
    targets: object,
    classes: Iterable[int] | None = None,
) -> None:
    """Refuse outputs and targets that a criterion's likelihood is no likelihood of.

    Args:
        likelihood: of which the criterion is the mean negative logarithm, or None where that is
            not known; then only what can be said without it is checked.
        criterion: the training loss.
        returned: by the model, for B samples.
        targets: of the samples.
        classes: of the whole experience; by default the labels among the targets.

    Raises:
        TypeError: if there are no logits in what the model returned.
        ValueError: naming what would be right.
    """
    if not isinstance(returned, Tensor):
        _check_takes_structures(criterion, returned)
    if likelihood is None:
        return
    outputs = logits_of(returned)
    if not isinstance(targets, Tensor):
        raise ValueError(
            f"targets must be a tensor, got {described(targets)}; let the data set return one alone"
        )
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
        _check_dimension_of_classes(criterion, returned, targets)


def _check_takes_structures(criterion: Any, returned: Any) -> None:
    """Refuse a criterion of PyTorch's own, which takes tensors, for outputs that are none."""
    kind = criterion if isinstance(criterion, FunctionType) else type(criterion)
    if kind.__module__.startswith("torch."):
        raise ValueError(
            f"criterion {kind.__name__} takes a tensor, but the model returned "
            f"{described(returned)}; take the logits out of that: "
            "criterion=lambda outputs, y: F.cross_entropy(logits_of(outputs), y), with "
            "likelihood=Categorical(), or likewise for other losses"
        )


def _check_classes(
    likelihood: Categorical, outputs: Tensor, targets: Tensor, classes: Iterable[int] | None
) -> None:
    """Refuse classes of the experience that the model has no output for."""
    only = [*(classes or ())]
    if outputs.dim() == 2 and outputs.shape[1] == 1 and len(only) == 1:
        raise ValueError(
            "criterion CrossEntropyLoss (Avalanche's default) over a single output is always zero, "
            f"and the experience has the single class {only[0]}; put at least two classes into "
            "each experience, or give the model outputs for other classes, too (if the targets are "
            "no classes but numbers, use criterion=torch.nn.MSELoss())"
        )
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


def _check_dimension_of_classes(criterion: Any, returned: Any, targets: Tensor) -> None:
    """Refuse a criterion of the user's own that takes the last dimension for the classes.

    Where it is as large as dimension 1, only the gradient of the criterion can tell.
    """
    outputs = logits_of(returned)
    if isinstance(criterion, (nn.CrossEntropyLoss, nn.NLLLoss)) or outputs.dim() < 3:
        return
    if outputs.shape[1] != outputs.shape[-1] or targets.is_floating_point():
        return
    with torch.enable_grad():
        leaf = outputs.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(criterion(with_logits(returned, leaf), targets), leaf)
    # That of a softmax sums to zero over the classes.
    over = {dim: float(gradient.sum(dim).abs().max()) for dim in (1, -1)}
    if over[-1] < 1e-3 * over[1]:
        raise ValueError(
            f"outputs of shape {tuple(outputs.shape)} have their classes last, but Categorical "
            "wants them in dimension 1; let the model return outputs.movedim(-1, 1), and use "
            "CrossEntropyLoss() without flattening"
        )
