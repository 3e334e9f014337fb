"""A model as it is called for the inputs of one task."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from avalanche_hnet.core.common.logits import logits_of
from avalanche_hnet.core.common.samples import Samples, joined, structure_of
from avalanche_hnet.core.common.substitution import substituted


@dataclass(frozen=True, eq=False)
class OneTask:
    """A model in evaluation mode, called for inputs that all belong to one task.

    Attributes:
        model: called with ``(x)`` or, if there is a label, with ``(x, labels)``.
        parameters: those whose gradients are wanted, by name.
        label: of the task: (1,), to be repeated for each sample, or a number that is passed as it
            is, or None.
        in_pairs: whether a sample that is alone is given twice, to a model that would drop the
            dimension of the samples (``squeeze``).
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    label: Tensor | int | None
    in_pairs: bool = False

    @cached_property
    def layers(self) -> dict[str, nn.Module]:
        """All modules of the model by name, of several names the first."""
        return dict(self.model.named_modules())

    @cached_property
    def names(self) -> dict[str, dict[str, str]]:
        """The names in the model of each layer's own parameters, by their names in the layer."""
        return {
            prefix: {
                name: f"{prefix}.{name}".lstrip(".")
                for name, parameter in layer._parameters.items()
                if parameter is not None
            }
            for prefix, layer in self.layers.items()
        }

    def outputs(
        self, x: Tensor | Samples, parameters: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Outputs (B, …) for inputs (B, …), with ``parameters`` in place of the model's."""
        is_paired = self.in_pairs and len(x) == 1
        arguments = self._arguments(joined([x, x]) if is_paired else x)
        with substituted(self.model, parameters) if parameters else nullcontext():
            outputs = logits_of(self.model(*arguments))
        return outputs[:1] if is_paired else outputs

    def of_layers(self, prefixes: Iterable[str]) -> set[str]:
        """Names of the wanted parameters that belong to layers, which are given by their names."""
        return {
            name
            for prefix in prefixes
            for name in self.names[prefix].values()
            if name in self.parameters
        }

    def layers_of(self, names: Collection[str]) -> set[str]:
        """The names of the layers that have parameters of these names."""
        return {
            prefix
            for prefix, own_names in self.names.items()
            if any(name in names for name in own_names.values())
        }

    def _arguments(self, x: Tensor | Samples) -> tuple[Any, ...]:
        if self.label is None:
            return (structure_of(x),)
        return structure_of(x), self.label.expand(len(x)) if isinstance(
            self.label, Tensor
        ) else self.label
