"""The tensor of outputs in what a model returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from avalanche_hnet.core.common.structures import described, with_value

_KEY = "logits"


def logits_of(outputs: Any) -> Tensor:
    """The logits (or, in regression, the predictions) in what a model returns.

    These are the tensor itself; ``logits`` of a mapping or of an object (a dataclass, a named
    tuple); or the first tensor of a tuple or list.

    A criterion may use it, to train a model that returns more than its logits:
    ``criterion=lambda outputs, y: F.cross_entropy(logits_of(outputs), y)``.

    Returns:
        The tensor (B, …) itself, with its graph.

    Raises:
        TypeError: if there are none, naming what the model returned.
    """
    return outputs if isinstance(outputs, Tensor) else _place_of(outputs)[1]


def with_logits(outputs: Any, logits: Tensor) -> Any:
    """What a model returned, with others in place of its logits."""
    return (
        logits
        if isinstance(outputs, Tensor)
        else with_value(outputs, _place_of(outputs)[0], logits)
    )


def _place_of(outputs: Any) -> tuple[str | int, Tensor]:
    """The key or index of the logits in a structure, and themselves."""
    named = outputs.get(_KEY) if isinstance(outputs, Mapping) else getattr(outputs, _KEY, None)
    if isinstance(named, Tensor):
        return _KEY, named
    if isinstance(outputs, (tuple, list)):
        for index, value in enumerate(outputs):
            if isinstance(value, Tensor):
                return index, value
    raise TypeError(
        "model must return a tensor, a mapping or an object with a tensor 'logits', or a tuple "
        f"whose first tensor they are; it returned {described(outputs)}"
    )
