"""Which models are called with task labels."""

from __future__ import annotations

from inspect import Parameter, signature

from torch import nn

# What Avalanche's modules for several tasks have. Asked for by name: ``isinstance`` with a protocol
# does not see the attributes that a wrapper, such as that of ``torch.compile``, passes on.
_OF_MULTI_TASK_MODULES = "forward_single_task"


def takes_task_labels(model: nn.Module) -> bool:
    """Whether it is one of Avalanche's modules for several tasks or its ``forward`` says so.

    That is a second parameter that is called ``task_labels`` or has no default.
    """
    if hasattr(model, _OF_MULTI_TASK_MODULES):
        return True
    second = _positional(model)[1:2]
    return any(p.name == "task_labels" or p.default is Parameter.empty for p in second)


def may_take_task_labels(model: nn.Module) -> bool:
    """Whether its ``forward`` has a second parameter, of any name."""
    return hasattr(model, _OF_MULTI_TASK_MODULES) or len(_positional(model)) > 1


def _positional(model: nn.Module) -> list[Parameter]:
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return [p for p in signature(model.forward).parameters.values() if p.kind in kinds]
