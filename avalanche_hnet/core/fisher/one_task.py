"""A model as it is called for the inputs of one task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class OneTask:
    """A model in evaluation mode, called for inputs that all belong to one task.

    Attributes:
        model: called with ``(x)`` or, if there is a label, with ``(x, labels)``.
        parameters: those whose gradients are wanted, by name.
        label: of the task: (1,), to be repeated for each sample, or a number that is passed as it
            is, or None.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    label: Tensor | int | None

    def outputs(self, x: Tensor) -> Tensor:
        """Outputs (B, …) for inputs (B, …)."""
        outputs: Tensor = self.model(*self._arguments(x))
        return outputs

    def of_layers(self, prefixes: Iterable[str]) -> set[str]:
        """Names of the wanted parameters that belong to layers, which are given by their names."""
        return {
            name
            for prefix in prefixes
            for name in names_in(prefix, self.model.get_submodule(prefix))
            if name in self.parameters
        }

    def _arguments(self, x: Tensor) -> tuple[Any, ...]:
        if self.label is None:
            return (x,)
        return x, self.label.expand(len(x)) if isinstance(self.label, Tensor) else self.label


def names_in(prefix: str, layer: nn.Module) -> set[str]:
    """The names that a layer's own parameters have in its model."""
    return {full_name(prefix, name) for name, _ in layer.named_parameters(recurse=False)}


def full_name(prefix: str, name: str) -> str:
    """The name in its model of a parameter of a layer, or of the model itself."""
    return f"{prefix}.{name}".lstrip(".")
