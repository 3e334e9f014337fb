"""Several yes-or-no targets at once: the likelihood of the binary cross-entropy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_hnet.core.common.arguments import generator_or_none
from avalanche_hnet.core.common.likelihoods.base import Likelihood, check_same_shape, per_sample
from avalanche_hnet.core.common.likelihoods.criterion_class import as_module
from avalanche_hnet.core.common.likelihoods.loss_weights import checked_weights, shown


class Bernoulli(Likelihood):
    """Independent labels y_d ∈ {0, 1} with probabilities sigmoid(f_d(x)): multi-label targets.

    ``outputs`` are logits (B, …), ``targets`` real numbers from 0 to 1 of the same shape. The NLL
    of a sample is the sum over its outputs,

        Σ_d −a_d [w_d y_d log σ(f_d) + (1 − y_d) log(1 − σ(f_d))],

    with a = ``weight`` and w = ``pos_weight`` as in PyTorch's ``BCEWithLogitsLoss``. Under weights
    it is no likelihood of labels any more, but still a loss for each: labels are drawn from
    σ(f), and the Fisher is of the weighted NLL. N counts samples, whatever their weights.

    Args:
        pos_weight: of the positive labels, of a shape that expands to one sample's outputs.
        weight: of the outputs, likewise.

    Raises:
        TypeError, ValueError: if weights are negative or not finite.
    """

    def __init__(self, *, pos_weight: Tensor | None = None, weight: Tensor | None = None) -> None:
        self.pos_weight = checked_weights("pos_weight", pos_weight)
        self.weight = checked_weights("weight", weight)

    def __repr__(self) -> str:
        return f"Bernoulli({shown(pos_weight=self.pos_weight, weight=self.weight)})"

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.check(outputs, targets)
        weight, pos_weight = self._weights(outputs)
        losses = F.binary_cross_entropy_with_logits(
            outputs, targets.to(outputs.dtype), weight, pos_weight=pos_weight, reduction="none"
        )
        return per_sample(losses)

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        generator_or_none(generator=generator)
        device = outputs.device if generator is None else generator.device
        probabilities = outputs.detach().sigmoid().to(device)
        return torch.bernoulli(probabilities, generator=generator).to(outputs.device)

    def fisher_factors(self, outputs: Tensor) -> Iterator[Tensor]:
        """The deviations of each output's gradient and, under ``pos_weight``, their means.

        The labels are independent, so that E[g gᵀ] = diag(Var g) + E[g] E[g]ᵀ, where g_d is
        a w (σ − 1) or a σ.
        """
        p, q = outputs.sigmoid(), (-outputs).sigmoid()
        weight, pos_weight = self._weights(outputs)
        a = 1.0 if weight is None else weight
        w = 1.0 if pos_weight is None else pos_weight
        deviations = (p * q).sqrt() * a * (w * q + p)
        for unit in range(outputs[0].numel()):
            of_unit = deviations.reshape(len(outputs), -1)[:, unit]
            if not of_unit.any():  # a masked unit
                continue
            factor = torch.zeros_like(outputs)
            factor.view(len(outputs), -1)[:, unit] = of_unit
            yield factor
        if pos_weight is not None:
            yield p * q * a * (1 - w)

    def criterion_scale(self, criterion: object, outputs: Tensor, targets: Tensor) -> float:
        criterion = as_module(criterion)
        if not isinstance(criterion, nn.BCEWithLogitsLoss):
            return 1.0
        return float(len(outputs)) if criterion.reduction == "sum" else 1 / outputs[0].numel()

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        is_label = not targets.is_floating_point() and targets.dim() < outputs.dim()
        check_same_shape(
            outputs, targets, " (for class labels use criterion=CrossEntropyLoss())" * is_label
        )
        if targets.numel() and not ((targets >= 0) & (targets <= 1)).all():
            raise ValueError(
                "targets of a Bernoulli likelihood must be numbers from 0 to 1, got "
                f"{targets.min().item()} to {targets.max().item()}"
            )
        self._weights(outputs)

    def _weights(self, outputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """``weight`` and ``pos_weight`` on the outputs' device, each for one sample's outputs."""
        of_sample = outputs.shape[1:]
        fitting: list[Tensor | None] = []
        for name, values in (("weight", self.weight), ("pos_weight", self.pos_weight)):
            if values is None:
                fitting.append(None)
                continue
            try:
                fitting.append(values.to(outputs).expand(of_sample))
            except RuntimeError:
                raise ValueError(
                    f"{name} must have one number for each of a sample's outputs, of shape "
                    f"{tuple(of_sample)}, got shape {tuple(values.shape)}"
                ) from None
        return fitting[0], fitting[1]
