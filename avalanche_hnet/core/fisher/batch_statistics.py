"""Layers whose samples have no gradients of their own."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


def refuse_batch_statistics(layers: Mapping[str, nn.Module]) -> None:
    """Check that none of a model's layers in evaluation mode, by name, normalises over the batch.

    Raises:
        ValueError: naming the layer.
    """
    for name, module in layers.items():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
            module.training or module.running_mean is None
        ):
            raise ValueError(
                f"layer {name!r} ({type(module).__name__}) normalises with the statistics of the "
                "batch even in evaluation mode, so samples have no gradients of their own; use "
                "track_running_stats=True and let it follow model.eval(), or another normalisation"
            )
