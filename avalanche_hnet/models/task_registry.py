"""Which tasks a model has seen, and which of them it was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from avalanche_hnet.core.common.exchange import exchange


@dataclass(frozen=True)
class Task:
    """What a model knows of one task.

    Attributes:
        number: its place in the order in which tasks came, from 0.
        is_trained: whether it has been, or is being, trained on.
    """

    number: int
    is_trained: bool = False


class TaskRegistry:
    """One :class:`Task` for each task label, in the order in which they came.

    Attributes:
        has_trained: whether the model has run in training. That some task ``is_trained`` does not
            mean so yet: joint training takes in all experiences first.
    """

    def __init__(self) -> None:
        self.has_trained = False
        self._tasks: dict[int, Task] = {}

    @property
    def labels(self) -> tuple[int, ...]:
        """Labels of all tasks, in the order of their numbers."""
        return tuple(self._tasks)

    @property
    def trained_labels(self) -> tuple[int, ...]:
        """Labels of the tasks that have been, or are being, trained on."""
        return tuple(label for label, task in self._tasks.items() if task.is_trained)

    def number(self, label: int) -> int:
        """The number of the task with this label.

        Raises:
            ValueError: if it is not known.
        """
        try:
            return self._tasks[label].number
        except KeyError:
            raise ValueError(
                f"task label {label} is unknown; the model was adapted to experiences with the "
                f"labels {list(self._tasks)}"
            ) from None

    def new(self, labels: Iterable[int]) -> dict[int, int]:
        """The numbers that the tasks will get that are not known yet, by label."""
        new = [label for label in dict.fromkeys(labels) if label not in self._tasks]
        return {label: number for number, label in enumerate(new, len(self._tasks))}

    def add(self, labels: Iterable[int]) -> list[int]:
        """Take in the tasks that are not known yet, and return their numbers."""
        new = self.new(labels)
        self._tasks = self._tasks | {label: Task(number) for label, number in new.items()}
        return [*new.values()]

    def train(self, labels: Iterable[int]) -> None:
        """These tasks, which are known, are trained on from now on."""
        trained = {label: replace(self._tasks[label], is_trained=True) for label in labels}
        self._tasks = self._tasks | trained

    def state_dict(self) -> dict[str, Any]:
        """Labels, in the order of the tasks' numbers, and what was trained."""
        return {
            "tasks": list(self._tasks),
            "trained": sorted(self.trained_labels),
            "has_trained": self.has_trained,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> list[int]:
        """Become the registry of :meth:`state_dict`; return the numbers of tasks that are new.

        Raises:
            ValueError: if tasks that are known have other numbers there. Nothing is changed then.
        """
        labels: Sequence[int] = state["tasks"]
        n_known = len(self._tasks)
        if list(self._tasks) != labels[:n_known]:
            raise ValueError(
                f"the state has the tasks {labels} in this order, but the model "
                f"{list(self._tasks)}; load it into a model without tasks"
            )
        trained = set(state["trained"])
        tasks = {label: Task(n, label in trained) for n, label in enumerate(labels)}
        exchange(self, _tasks=tasks, has_trained=state["has_trained"])
        return [*range(n_known, len(labels))]
