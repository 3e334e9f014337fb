"""Which outputs of a main network are a task's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_hnet.core.common.logits import logits_of, with_logits
from avalanche_hnet.core.hypernetworks.weight_layout import WeightLayout
from avalanche_hnet.core.regularizers.deviation import SHARED, UNUSED
from avalanche_hnet.models.columns import Columns, SelectColumns
from avalanche_hnet.models.main_network import aliases_of


class OutputHeads:
    """Each task generates a head of its own, so all outputs are the task's.

    Attributes:
        reuse: whether each task begins with the first unit of a shared output layer again.
        generated: names of the generated parameters of the shared output layer.
        network_prefix: what :meth:`standalone` puts before the names of parameters.
    """

    reuse: bool = False
    generated: frozenset[str] = frozenset()
    network_prefix: str = ""

    def without_units(self, pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """The pairs of task label and class label that have no unit yet.

        Raises:
            ValueError: if not enough units are left for them, or a class label is negative.
        """
        return []

    def take(self, pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Give units to those that have none, and return them.

        Raises:
            ValueError: if not enough units are left. Nothing is changed then.
        """
        return []

    def select(self, outputs: Any, label: int, n_columns: int) -> Any:
        """What a task has of ``outputs`` (B, …); with a shared layer (B, n_columns), by class."""
        return outputs

    def standalone(self, network: nn.Module, label: int, n_columns: int) -> nn.Module:
        """A main network that is followed by :meth:`select`."""
        return network

    def weight_owners(self, layout: WeightLayout, number: Callable[[int], int]) -> Tensor | None:
        """For each generated weight (W,) the number of the task whose unit it belongs to.

        ``SHARED`` for weights of other layers, ``UNUSED`` for units that no task has taken. None
        where all units serve all tasks.

        Args:
            layout: of the generated weights.
            number: gives the number of a task by its label.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """Which task and class has which unit."""
        return {"reuse_units": self.reuse, "units": []}

    def options(self) -> dict[str, Any]:
        """What :func:`make_heads` was asked for, as plain values."""
        return {"output_layer": None}

    def require_same_reuse(self, state: Mapping[str, Any]) -> None:
        """Refuse a state with units that were handed out in another way."""
        if state.get("reuse_units", False) != self.reuse:
            raise ValueError(
                f"the state is that of a model with reuse_units={not self.reuse}, but this one has "
                f"reuse_units={self.reuse}"
            )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hand out the units of :meth:`state_dict`."""


class SharedOutputLayer(OutputHeads):
    """Hands out the units of one layer to pairs of task and class, as they come.

    Args:
        layer: name of the layer.
        number: how many units it has.
        generated: names of its parameters that are generated.
        reuse: whether each task begins with the first unit again.
        mask_value: the output for classes that a task does not have.

    Attributes:
        taken: pairs of task label and class label, in the order in which they came.
    """

    network_prefix = "0."

    def __init__(
        self,
        layer: str,
        number: int,
        *,
        generated: Iterable[str],
        reuse: bool,
        mask_value: float,
    ) -> None:
        self.layer = layer
        self.number = number
        self.generated = frozenset(generated)
        self.reuse = reuse
        self.mask_value = mask_value
        self.taken: list[tuple[int, int]] = []

    def without_units(self, pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """See the base class."""
        new = sorted({*pairs} - {*self.taken})
        if negative := [class_ for _, class_ in new if class_ < 0]:
            raise ValueError(
                f"class labels must be at least 0, but the experience has {negative[0]}; name its "
                "classes 0, 1, ... in the data set"
            )
        taken = self._units_by_task(self.taken)
        for label, needed in self._units_by_task(new).items():
            if taken[label] + needed > self.number:
                of = "" if label is None else f" for task {label}"
                raise ValueError(
                    f"the target's output layer {self.layer!r} has {self.number} units, of which "
                    f"{taken[label]} are taken{of}; the experience needs {needed} more"
                    + ("" if self.reuse else " (reuse_units=True lets tasks begin anew)")
                )
        return new

    def take(self, pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """See the base class."""
        new = self.without_units(pairs)
        self.taken = [*self.taken, *new]
        return new

    def columns(self, label: int, n_columns: int) -> Columns:
        """Which units a task has, and where they go among so many columns."""
        of_task = [(unit, c) for unit, (task, c) in enumerate(self.taken) if task == label]
        units = [*range(len(of_task))] if self.reuse else [unit for unit, _ in of_task]
        return Columns(units, [c for _, c in of_task], n_columns, self.mask_value)

    def select(self, outputs: Any, label: int, n_columns: int) -> Any:
        """See the base class.

        Raises:
            ValueError: if the outputs (B, U) are not those of the layer.
        """
        logits = logits_of(outputs)
        if logits.shape[1] != self.number:
            raise ValueError(
                f"the target has {logits.shape[1]} outputs, but its layer {self.layer!r} "
                f"has {self.number} units; name the output layer with output_layer"
            )
        return with_logits(outputs, self.columns(label, n_columns).of(logits))

    def standalone(self, network: nn.Module, label: int, n_columns: int) -> nn.Module:
        """See the base class."""
        return nn.Sequential(network, SelectColumns(self.columns(label, n_columns)))

    def weight_owners(self, layout: WeightLayout, number: Callable[[int], int]) -> Tensor | None:
        """See the base class."""
        if self.reuse:
            return None
        of_units = torch.full((self.number,), UNUSED)
        for unit, (label, _) in enumerate(self.taken):
            of_units[unit] = number(label)
        owners = {}
        for name, shape in layout.shapes.items():
            owners[name] = torch.full(shape, SHARED)
            if name in self.generated and shape[:1] == (self.number,):
                owners[name] = of_units.view(-1, *[1] * (len(shape) - 1)).expand(shape)
        return layout.flatten(owners)

    def options(self) -> dict[str, Any]:
        """See the base class."""
        return {"output_layer": self.layer}

    def state_dict(self) -> dict[str, Any]:
        """See the base class."""
        return super().state_dict() | {"units": [list(pair) for pair in self.taken]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See the base class."""
        self.taken = [(label, class_) for label, class_ in state["units"]]

    def _units_by_task(self, pairs: Iterable[tuple[int, int]]) -> Counter[int | None]:
        """How many units of those to choose from: of a task, or of all."""
        return Counter(label if self.reuse else None for label, _ in pairs)


def make_heads(
    target: nn.Module,
    layout: WeightLayout,
    *,
    multi_head: bool,
    reuse_units: bool,
    output_layer: str | None,
    mask_value: float,
) -> OutputHeads:
    """The heads of a main network; for the arguments see :class:`HyperModel`.

    Raises:
        ValueError: if they contradict each other or do not fit ``target``.
    """
    if output_layer is not None and not multi_head:
        raise ValueError(f"output_layer={output_layer!r} needs multi_head=True")
    if reuse_units and not multi_head:
        raise ValueError("reuse_units=True needs multi_head=True")
    if not multi_head:
        return OutputHeads()
    layer = _find_output_layer(target, output_layer)
    prefix = f"{layer}." if layer else ""
    parameters = {n for alias, n in aliases_of(target).items() if alias.startswith(prefix)}
    not_generated = parameters - layout.shapes.keys()
    if reuse_units and not_generated:
        raise ValueError(
            "reuse_units=True needs the output layer to be generated, but "
            f"{min(not_generated)!r} is not, and tasks would share it"
        )
    return SharedOutputLayer(
        layer,
        len(attrgetter(f"{prefix}weight")(target)),
        generated=parameters - not_generated,
        reuse=reuse_units,
        mask_value=mask_value,
    )


def _find_output_layer(target: nn.Module, name: str | None) -> str:
    """The name of the output layer, by default the last linear layer."""
    linear = [n for n, module in target.named_modules() if isinstance(module, nn.Linear)]
    if name is None and not linear:
        raise ValueError("target has no linear layer; name its output layer with output_layer")
    if name is None:
        return linear[-1]
    if not isinstance(getattr(dict(target.named_modules()).get(name), "weight", None), Tensor):
        raise ValueError(
            f"output_layer={name!r} is no layer with weights of the target; its linear layers are "
            f"{', '.join(linear)}"
        )
    return name
