"""Which elements of a model's parameters an experience's loss depends on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from avalanche.benchmarks import CLExperience
from torch import Tensor, nn

from avalanche_hnet.models.avalanche_heads import masks_of


@runtime_checkable
class HasActiveElements(Protocol):
    """A module that says which of its own elements take part in an experience."""

    def active_elements(self, experience: CLExperience) -> Mapping[str, Tensor]:
        """Boolean masks by parameter name, relative to this module, on any device.

        A mask has the parameter's shape or one that broadcasts to it; a parameter that is not
        mentioned is active as a whole.
        """


def active_elements(model: nn.Module, experience: CLExperience) -> dict[str, Tensor]:
    """Boolean masks, by name and of the shape of each parameter that requires grad.

    All elements are True but those that the loss of the experience cannot depend on: heads of
    other tasks in Avalanche's ``MultiHeadClassifier``, units of classes that it or
    ``IncrementalClassifier`` masks, later columns of a ``PNN``, the detached
    ``FeatureExtractorBackbone``, and what modules with a method ``active_elements``
    (:class:`HasActiveElements`) leave out. Such modules may stand anywhere in the model; where
    one contains another, an element is active only if both say so.

    Args:
        model: any module.
        experience: the one to be trained on.

    Returns:
        Masks of the parameters' shapes, on their devices; parameters that do not require grad have
        none.

    Raises:
        ValueError: if a module's masks do not fit its parameters.
    """
    active = {
        name: torch.ones_like(parameter, dtype=torch.bool)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    for prefix, module in model.named_modules():
        parameters = dict(module.named_parameters())
        says_it_itself = isinstance(module, HasActiveElements)
        masks = (
            module.active_elements(experience) if says_it_itself else masks_of(module, experience)
        )
        for name, mask in masks.items():
            full_name = f"{prefix}.{name}" if prefix else name
            _check_mask(full_name, mask, parameters.get(name))
            if full_name in active:
                active[full_name] &= mask.to(active[full_name].device)
    return active


def _check_mask(name: str, mask: Tensor, parameter: Tensor | None) -> None:
    if parameter is None:
        raise ValueError(f"active_elements names {name!r}, which is no parameter of its module")
    if mask.dtype != torch.bool:
        raise ValueError(f"active_elements must give boolean masks, got {mask.dtype} for {name!r}")
    try:
        fits = torch.broadcast_shapes(mask.shape, parameter.shape) == parameter.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"active_elements gives {name!r} a mask of shape {tuple(mask.shape)}, which does not "
            f"broadcast to the parameter's {tuple(parameter.shape)}"
        )
