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
    active: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():
        # As isinstance(module, HasActiveElements), which takes long where there are many heads.
        own = getattr(module, "active_elements", None)
        masks = masks_of(module, experience) if own is None else own(experience)
        if not masks:
            continue
        parameters = dict(module.named_parameters())
        for name, mask in masks.items():
            full_name = f"{prefix}.{name}" if prefix else name
            parameter = parameters.get(name)
            _check_mask(full_name, mask, parameter)
            assert parameter is not None  # or the check would have failed
            whole = mask.to(parameter.device).expand(parameter.shape)
            active[full_name] = active[full_name] & whole if full_name in active else whole.clone()
    return {
        name: active[name] if name in active else torch.ones_like(parameter, dtype=torch.bool)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _check_mask(name: str, mask: Tensor, parameter: Tensor | None) -> None:
    if parameter is None:
        raise ValueError(f"active_elements names {name!r}, which is no parameter of its module")
    if mask.dtype != torch.bool:
        raise ValueError(f"active_elements must give boolean masks, got {mask.dtype} for {name!r}")
    if not _broadcasts(mask.shape, parameter.shape):
        raise ValueError(
            f"active_elements gives {name!r} a mask of shape {tuple(mask.shape)}, which does not "
            f"broadcast to the parameter's {tuple(parameter.shape)}"
        )


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    return len(shape) <= len(to) and all(
        size in (1, wanted) for size, wanted in zip(shape[::-1], to[::-1], strict=False)
    )
