"""Rules for types of layers."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, TypeVar

from torch import nn

Rule = TypeVar("Rule")


def registering(
    rules: MutableMapping[type[nn.Module], Rule], layer_types: tuple[type[nn.Module], ...]
) -> Callable[[Rule], Rule]:
    """Decorator that puts the rule of these types among ``rules``."""
    for layer_type in layer_types:
        if not (isinstance(layer_type, type) and issubclass(layer_type, nn.Module)):
            raise TypeError(f"layer_types must be subclasses of nn.Module, got {layer_type!r}")

    def register(rule: Rule) -> Rule:
        for layer_type in layer_types:
            rules[layer_type] = rule
        return rule

    return register


def rule_of(rules: MutableMapping[type[nn.Module], Rule], layer: nn.Module) -> Rule | None:
    """The rule of the layer's type, or of the base class whose ``forward`` it inherits."""
    layer_types: tuple[type[Any], ...] = type(layer).__mro__
    for layer_type in layer_types:
        if layer_type in rules:
            same = type(layer).forward is layer_type.forward
            return rules[layer_type] if same else None
    return None
