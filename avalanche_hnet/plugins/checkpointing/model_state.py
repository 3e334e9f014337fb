"""The state of a model, which grows as experiences come, and how it has grown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def model_state(model: nn.Module) -> dict[str, Any]:
    """Weights and buffers, what is frozen, and what is in evaluation mode."""
    return {
        "state": model.state_dict(),
        "frozen": [name for name, p in model.named_parameters() if not p.requires_grad],
        "evaluating": [name for name, module in model.named_modules() if not module.training],
    }


def load_model_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Put :func:`model_state` into a model that has grown in the same way.

    Raises:
        ValueError: if it is another one.
    """
    try:
        model.load_state_dict(state["state"])
    except RuntimeError as error:
        raise ValueError(
            f"the checkpoint does not fit {type(model).__name__}, although it was shown the same "
            f"experiences: {error}"
        ) from None
    frozen, evaluating = set(state["frozen"]), set(state["evaluating"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    for name, module in model.named_modules():
        module.training = name not in evaluating
