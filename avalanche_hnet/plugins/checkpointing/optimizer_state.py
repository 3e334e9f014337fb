"""The state of an optimizer by parameter names, whatever order and number its parameters have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from avalanche_hnet.core.common.optimizers import parameters_of
from avalanche_hnet.plugins.checkpointing.plain import from_plain, to_plain

# Parameters that a model has replaced since by others of the same name are kept in full: what an
# optimizer does with their successors depends on the difference.
_Reference = str | dict[str, Any]


def require_known_parameters(optimizer: Optimizer, model: nn.Module) -> None:
    """Refuse an optimizer with parameters that are not the model's, and so have no name.

    Raises:
        ValueError: saying of what shapes they are.
    """
    known = {id(p) for p in model.parameters()}
    unknown = [tuple(p.shape) for p in parameters_of(optimizer) if id(p) not in known]
    if unknown:
        raise ValueError(
            "CheckpointPlugin saves an optimizer by the names of its parameters, but this one has "
            f"{len(unknown)} that are not its model's, of the shapes {unknown[:3]}; make them "
            "part of the model"
        )


def optimizer_state(
    optimizer: Optimizer, model: nn.Module, optimized: Mapping[str, nn.Parameter] | None = None
) -> dict[str, Any]:
    """Parameter groups and memory, in plain values.

    Args:
        optimizer: of parameters of the model.
        model: has the names.
        optimized: parameters by name, as Avalanche keeps them; None before the first experience.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    former = {id(p): name for name, p in (optimized or {}).items() if id(p) not in names}

    def reference(parameter: torch.Tensor) -> _Reference:
        if id(parameter) in names:
            return names[id(parameter)]
        value = parameter.detach().clone()
        return {"name": former.get(id(parameter), ""), "was": value, "id": id(parameter)}

    groups = [
        {
            "options": to_plain({k: v for k, v in group.items() if k != "params"}, "optimizer"),
            "parameters": [reference(p) for p in group["params"]],
        }
        for group in optimizer.param_groups
    ]
    memory = [
        [reference(p), to_plain(dict(of_parameter), "optimizer")]
        for p, of_parameter in optimizer.state.items()
        if isinstance(p, torch.Tensor)
    ]
    return {
        "groups": groups,
        "memory": memory,
        "optimized": None
        if optimized is None
        else [[name, reference(p)] for name, p in optimized.items()],
    }


def load_optimizer_state(
    optimizer: Optimizer, model: nn.Module, state: Mapping[str, Any]
) -> dict[str, nn.Parameter] | None:
    """Put :func:`optimizer_state` into the optimizer of a model with the same parameters.

    Returns:
        Parameters by name, as Avalanche keeps them; None before the first experience.
    """
    named = dict(model.named_parameters())
    former: dict[int, nn.Parameter] = {}

    def parameter(reference: _Reference) -> nn.Parameter:
        if isinstance(reference, str):
            return named[reference]
        device = next(iter(named.values())).device
        made = nn.Parameter(reference["was"].to(device))
        return former.setdefault(reference["id"], made)

    for number, group in enumerate(state["groups"]):
        if number == len(optimizer.param_groups):
            optimizer.param_groups.append({})
        own = optimizer.param_groups[number]
        own.update(from_plain(group["options"]))
        own["params"] = [parameter(reference) for reference in group["parameters"]]
    optimizer.state.clear()
    for reference, of_parameter in state["memory"]:
        optimizer.state[parameter(reference)] = from_plain(of_parameter)
    if state["optimized"] is None:
        return None
    return {name: parameter(reference) for name, reference in state["optimized"]}
