"""What class labels and their logits are refused for."""

from __future__ import annotations

import torch
from torch import Tensor


def check_shapes(outputs: Tensor, targets: Tensor) -> None:
    """Refuse outputs that are no logits of classes, and targets that do not fit them.

    Raises:
        ValueError: naming what would fit.
    """
    shape, got = tuple(outputs.shape), tuple(targets.shape)
    if outputs.dim() < 2 or outputs.shape[1] == 1:
        what = (
            "over a single output is always zero"
            if outputs.dim() > 1
            else f"needs (B, C), not {shape}"
        )
        raise ValueError(
            f"criterion CrossEntropyLoss (Avalanche's default) {what}; for regression use "
            "criterion=torch.nn.MSELoss(), for a yes or no criterion=torch.nn.BCEWithLogitsLoss()"
        )
    if targets.is_floating_point():
        if got != shape:
            raise ValueError(
                f"targets of a cross-entropy must be integers (class labels), or class "
                f"probabilities of the outputs' shape {shape}; got real numbers of shape {got}; "
                "for regression use criterion=torch.nn.MSELoss()"
            )
        if (targets < 0).any():
            raise ValueError(
                "targets of a cross-entropy that are real numbers must be class probabilities, got "
                f"{targets.min().item()}; for regression use criterion=torch.nn.MSELoss()"
            )
        return
    if targets.dtype not in (torch.int64, torch.uint8):
        raise ValueError(f"targets must be class labels of type int64, got {targets.dtype}")
    right = shape[:1] + shape[2:]
    if got == right:
        return
    if len(shape) > 2 and got == shape[:-1]:
        raise ValueError(
            f"outputs of shape {shape} have their classes last, but a cross-entropy wants them in "
            "dimension 1; let the model return outputs.movedim(-1, 1), and use CrossEntropyLoss() "
            "without flattening"
        )
    raise ValueError(
        f"targets have the shape {got}, but class labels for outputs of shape {shape} have the "
        f"shape {right}"
    )


def are_classes(targets: Tensor, n_classes: int) -> bool:
    """Whether all of some labels are those of output units."""
    lowest, highest = targets.aminmax()
    return int(lowest) >= 0 and int(highest) < n_classes


def check_labels(targets: Tensor, n_classes: int, ignore_index: int) -> None:
    """Refuse class labels that are neither those of output units nor ignored.

    Raises:
        ValueError: naming the range.
    """
    if targets.numel() == 0 or are_classes(targets, n_classes):
        return
    labels = targets[targets != ignore_index]
    if labels.numel() and not 0 <= labels.min() <= labels.max() < n_classes:
        raise ValueError(
            f"targets must be class indices from 0 to {n_classes - 1}, one per output "
            f"unit; got {int(labels.min())} to {int(labels.max())}"
        )
