"""Which task and class has which unit of an output layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


class OutputUnits:
    """Hands out the units of a layer to pairs of task and class, as they come.

    Args:
        layer: name of the layer.
        number: how many units it has.
        reuse: whether each task begins with the first unit again.

    Attributes:
        taken: pairs of task label and class label, in the order in which they came.
    """

    def __init__(self, layer: str, number: int, *, reuse: bool) -> None:
        self.layer = layer
        self.number = number
        self.reuse = reuse
        self.taken: list[tuple[int, int]] = []

    def take(self, pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Give units to the pairs that have none yet, and return these.

        Raises:
            ValueError: if not enough units are left. Nothing is changed then.
        """
        new = sorted({*pairs} - {*self.taken})
        taken = self._by_task(self.taken)
        for label, needed in self._by_task(new).items():
            if taken[label] + needed > self.number:
                of = "" if label is None else f" for task {label}"
                raise ValueError(
                    f"the target's output layer {self.layer!r} has {self.number} units, of which "
                    f"{taken[label]} are taken{of}; the experience needs {needed} more"
                    + ("" if self.reuse else " (reuse_units=True lets tasks begin anew)")
                )
        self.taken += new
        return new

    def of(self, label: int) -> tuple[list[int], list[int]]:
        """Units and class labels of a task."""
        found = [(unit, c) for unit, (task, c) in enumerate(self.taken) if task == label]
        classes = [c for _, c in found]
        return [*range(len(found))] if self.reuse else [unit for unit, _ in found], classes

    def _by_task(self, pairs: Iterable[tuple[int, int]]) -> Counter[int | None]:
        """How many units of those to choose from: of a task, or of all."""
        return Counter(label if self.reuse else None for label, _ in pairs)
