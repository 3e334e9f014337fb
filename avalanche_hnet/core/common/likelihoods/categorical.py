"""Class labels: the likelihood of the cross-entropy, weighted or smoothed too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_hnet.core.common.arguments import fraction, generator_or_none, integer
from avalanche_hnet.core.common.likelihoods.base import Likelihood, per_sample
from avalanche_hnet.core.common.likelihoods.categorical_checks import (
    are_classes,
    check_labels,
    check_shapes,
)
from avalanche_hnet.core.common.likelihoods.criterion_class import as_module
from avalanche_hnet.core.common.likelihoods.loss_weights import checked_weights, shown

IGNORED = -100
"""PyTorch's default of ``ignore_index``."""


class Categorical(Likelihood):
    """Class labels with probabilities softmax(f(x)) over dimension 1.

    ``outputs`` are logits (B, C) or (B, C, d₁, …); ``targets`` are class indices (B,) or
    (B, d₁, …), or class probabilities of the shape of ``outputs``. The NLL of a sample is the
    sum over its positions d₁, …, without those whose label is ``ignore_index``.

    With class weights w and label smoothing ε, the NLL of a label y is PyTorch's cross-entropy,

        −(1 − ε) w_y log p_y − (ε / C) Σ_c w_c log p_c,

    a loss for each sample with a gradient and a Fisher, but no likelihood of labels any more:
    labels are drawn from p = softmax(f(x)) all the same, and the Fisher is of this NLL, in which
    weights are squared. N counts samples, whatever their weights, and also those that are ignored.
    ``CrossEntropyLoss`` divides by the weights of a batch's labels instead of their number; its
    multiple of the mean NLL is found for each batch. So multiplying all weights by a constant
    leaves the criterion as it was, but not the Fisher: let them be 1 on average over the data.

    Args:
        class_weights: w, shape (C,), not negative.
        label_smoothing: ε, from 0 to 1.
        ignore_index: label of positions that do not count, in loss, Fisher or posterior.

    Raises:
        TypeError, ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        *,
        class_weights: Tensor | Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = IGNORED,
    ) -> None:
        fraction(label_smoothing=label_smoothing)
        integer("an integer", ignore_index=ignore_index)
        self.class_weights = checked_weights("class_weights", class_weights)
        if self.class_weights is not None and self.class_weights.dim() != 1:
            shape = tuple(self.class_weights.shape)
            raise ValueError(
                f"class_weights must have one number for each class, got shape {shape}"
            )
        self.label_smoothing = float(label_smoothing)
        self.ignore_index = ignore_index

    def __repr__(self) -> str:
        arguments = shown(
            class_weights=self.class_weights,
            label_smoothing=self.label_smoothing or None,
            ignore_index=None if self.ignore_index == IGNORED else self.ignore_index,
        )
        return f"Categorical({arguments})"

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if not targets.is_floating_point():
            check_labels(targets, outputs.shape[1], self.ignore_index)
        losses = F.cross_entropy(
            outputs,
            targets,
            self._weights(outputs),
            ignore_index=IGNORED if targets.is_floating_point() else self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        return per_sample(losses)

    def nll_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See :class:`Likelihood`; p minus 1 at the label, if all of them count alike."""
        if not self._is_of_labels(outputs, targets):
            return super().nll_gradient(outputs, targets)
        label = targets.long().unsqueeze(1)
        gradient = outputs.detach().softmax(1)
        return gradient.scatter_add_(1, label, gradient.new_full((), -1.0).expand_as(label))

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        generator_or_none(generator=generator)
        probabilities = outputs.movedim(1, -1).softmax(-1)
        device = outputs.device if generator is None else generator.device
        drawn = torch.multinomial(
            probabilities.flatten(0, -2).to(device), 1, generator=generator
        ).to(outputs.device)
        return drawn.view(probabilities.shape[:-1])

    def fisher_factors(self, outputs: Tensor) -> Iterator[Tensor]:
        """Of each position and label and, where gradients have means, those of all positions.

        The labels of positions are independent, so that E[g gᵀ] = Σ_positions Cov g + E[g] E[g]ᵀ.
        Of a plain cross-entropy, or a single position, the second term is not needed.
        """
        by_position = outputs.flatten(2) if outputs.dim() > 2 else outputs.unsqueeze(2)
        by_position = by_position.softmax(1)
        shares = self._shares(outputs)
        means = None
        if by_position.shape[2] > 1 and not self._is_plain(outputs.shape[1]):
            means = torch.einsum("bcp,cd->bdp", by_position, shares)  # of S_y, over labels y
            means = means.sum(1, keepdim=True) * by_position - means
        for position in range(by_position.shape[2]):
            p = by_position[:, :, position]
            for label in range(p.shape[1]):
                if not p[:, label].any():  # a masked unit: no sample can have this label
                    continue
                gradient = shares[label].sum() * p - shares[label]
                if means is not None:
                    gradient = gradient - means[:, :, position]
                elif label == self.ignore_index:
                    continue
                factor = torch.zeros_like(by_position)
                factor[:, :, position] = p[:, label, None].sqrt() * gradient
                yield factor.view(outputs.shape)
        if means is not None:
            yield means.view(outputs.shape)

    def criterion_scale(self, criterion: object, outputs: Tensor, targets: Tensor) -> float:
        criterion = as_module(criterion)
        if not isinstance(criterion, (nn.CrossEntropyLoss, nn.NLLLoss)):
            return 1.0
        if criterion.reduction == "sum":
            return float(len(outputs))
        if targets.is_floating_point():  # then PyTorch divides by the number of positions
            return outputs.shape[1] / outputs[0].numel()
        ignored = targets == criterion.ignore_index
        if criterion.weight is None:
            total = float(targets.numel() - int(ignored.sum()))
        else:
            weights = criterion.weight.to(targets.device)[targets.long().masked_fill(ignored, 0)]
            total = weights.masked_fill(ignored, 0).sum().item()
        if not total:
            raise ValueError(
                f"the labels of a whole batch are ignore_index={criterion.ignore_index} or have "
                "weight zero, so that its mean loss is 0/0; leave such samples out, or use "
                "reduction='sum'"
            )
        return len(outputs) / total

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        check_shapes(outputs, targets)
        if not targets.is_floating_point():
            check_labels(targets, outputs.shape[1], self.ignore_index)
        self._weights(outputs)

    def counted(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        if targets.is_floating_point():
            return None
        counted = targets != self.ignore_index
        return None if counted.all() else counted.unsqueeze(1)

    def _weights(self, outputs: Tensor) -> Tensor | None:
        weights = self.class_weights
        if weights is None:
            return None
        if len(weights) != outputs.shape[1]:
            raise ValueError(
                f"class_weights (weight of the criterion) has {len(weights)} numbers, but the "
                f"model has {outputs.shape[1]} outputs; give each class one"
            )
        return weights.to(outputs)

    def _shares(self, outputs: Tensor) -> Tensor:
        """S (C, C), so that the NLL of label y is −Σ_c S_yc log p_c."""
        n_classes = outputs.shape[1]
        weights = self._weights(outputs)
        weights = outputs.new_ones(n_classes) if weights is None else weights
        smooth = self.label_smoothing
        shares = (1 - smooth) * weights.diag() + smooth / n_classes * weights
        if 0 <= self.ignore_index < n_classes:
            shares[self.ignore_index] = 0
        return shares

    def _is_of_labels(self, outputs: Tensor, targets: Tensor) -> bool:
        """Whether the NLL is the plain cross-entropy of labels all of which are classes."""
        n_classes = outputs.shape[1]
        return (
            type(self).nll is Categorical.nll
            and self._is_plain(n_classes)
            and not targets.is_floating_point()
            and targets.shape == outputs.shape[:1] + outputs.shape[2:]
            and targets.numel() > 0
            and are_classes(targets, n_classes)
        )

    def _is_plain(self, n_classes: int) -> bool:
        """Whether the NLL is that of labels, whose gradient has the mean zero."""
        is_weighted = self.class_weights is not None or self.label_smoothing > 0
        return not is_weighted and not 0 <= self.ignore_index < n_classes
