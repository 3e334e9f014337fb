"""The hidden layers of a hypernetwork."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any

from torch import Tensor, nn

from avalanche_hnet.core.common.arguments import at_least
from avalanche_hnet.core.common.substitution import substituted
from avalanche_hnet.core.hypernetworks.pairs import LinearOfPairs, linear
from avalanche_hnet.core.hypernetworks.trunk_inputs import TrunkInputs


def make_trunk(
    inputs: TrunkInputs,
    hidden: Sequence[int],
    activation: Callable[[], nn.Module],
    dropout: float,
) -> nn.Sequential:
    """Linear layers of the widths ``hidden``, each followed by its activation and dropout.

    Raises:
        TypeError, ValueError: if an argument is out of its range.
    """
    if not isinstance(hidden, Sequence):
        raise TypeError(f"hidden must be a sequence of widths, such as (9, 9), got {hidden!r}")
    _require_factory(activation)
    at_least(1, **{f"hidden[{i}]": width for i, width in enumerate(hidden)})
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be a probability below 1, got {dropout}")
    if not hidden:
        return nn.Sequential(*inputs.as_vectors())
    trunk = nn.Sequential()
    for position, width in enumerate(hidden):
        first = position == 0
        trunk.append(inputs.first_layer(width) if first else nn.Linear(hidden[position - 1], width))
        trunk.append(activation())
        if dropout:
            trunk.append(nn.Dropout(dropout))
    return trunk


def hidden_units(trunk: nn.Sequential, inputs: Any, given: Mapping[str, Tensor]) -> Tensor:
    """Outputs of the trunk (T, K, r), with given values in place of parameters and buffers.

    Like the trunk itself with these, at a fraction of the overhead for plain linear layers.

    Args:
        trunk: the hidden layers.
        inputs: as :meth:`TrunkInputs.feed` makes them.
        given: values by the names that they replace in the hypernetwork, ``"trunk.…"``.
    """
    if not given:
        return trunk(inputs)
    first: dict[nn.Module, int] = {}
    for position, module in enumerate(trunk):
        prefix = f"trunk.{first.setdefault(module, position)}."  # an activation may come again
        if isinstance(module, nn.Linear) and type(module) in (nn.Linear, LinearOfPairs):
            weight = given.get(f"{prefix}weight", module.weight)
            inputs = linear(inputs, weight, given.get(f"{prefix}bias", module.bias))
            continue
        replaced = {n.removeprefix(prefix): t for n, t in given.items() if n.startswith(prefix)}
        with substituted(module, replaced) if replaced else nullcontext():
            inputs = module(inputs)
    hidden: Tensor = inputs
    return hidden


def _require_factory(activation: object) -> None:
    module = None
    if callable(activation) and not isinstance(activation, nn.Module):
        with suppress(TypeError):
            module = activation()
    if not isinstance(module, nn.Module):
        raise TypeError(
            "activation must make a module when it is called without arguments, such as "
            f"torch.nn.ReLU, got {activation!r}, which makes {module!r}"
        )
