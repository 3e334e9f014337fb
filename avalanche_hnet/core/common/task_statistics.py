"""Running statistics of normalisation layers, a set of them for each task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from avalanche_hnet.core.common.exchange import exchange

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class TaskStatistics:
    """Each task's running statistics, so that training on others does not overwrite them.

    They are those of all layers that track them: ``BatchNorm1d`` to ``3d``, ``SyncBatchNorm``, and
    ``InstanceNorm`` with ``track_running_stats=True``. A task starts from the statistics that the
    model had when its first task began, as in Henning et al. 2021 (arXiv 2103.01133).

    While a task is trained, its statistics are in the model, which updates them; :meth:`store`
    takes them over.

    Attributes:
        latest: label of the task that was begun last; None before the first.
    """

    def __init__(self) -> None:
        self.latest: int | None = None
        self._initial: dict[str, Tensor] = {}
        self._tasks: dict[int, dict[str, Tensor]] = {}

    @property
    def task_labels(self) -> tuple[int, ...]:
        """Labels of the tasks that have statistics, in the order in which they were begun."""
        return tuple(self._tasks)

    def begin(self, model: nn.Module, task_label: int) -> None:
        """Put the statistics of a task into the model, to train it.

        Raises:
            ValueError: if the model has no layer with running statistics, or has layers that do
                not know their size yet, or of another size than before.
        """
        require_statistics(model)
        initial, before = self._with_initial(model), _copies(model)
        try:
            _put(model, self._tasks.get(task_label, {}), initial)
            tasks = self._tasks | {task_label: _copies(model)}
            exchange(self, latest=task_label, _initial=initial, _tasks=tasks)
        except BaseException:
            _put(model, before, before)
            raise

    def store(self, model: nn.Module) -> None:
        """Keep the model's statistics as those of the task that was begun last.

        Raises:
            ValueError: if none was.
        """
        if self.latest is None:
            raise ValueError("no task has been begun, whose statistics these would be")
        self._tasks = self._tasks | {self.latest: _copies(model)}

    @contextmanager
    def using(self, model: nn.Module, task_label: int) -> Iterator[None]:
        """A task's statistics, as last stored, in the model; afterwards what was there before.

        For a task without statistics, those of the latest one, and the model's own if there is
        none.

        Raises:
            ValueError: if the model has layers of another size.
        """
        before = _copies(model)
        label = task_label if task_label in self._tasks else self.latest
        try:
            if label is not None:
                _put(model, self._tasks[label], self._with_initial(model))
            yield
        finally:
            with torch.no_grad():
                for name, buffer in _statistics(model).items():
                    buffer.copy_(before.get(name, buffer))

    def state_dict(self) -> dict[str, Any]:
        """Everything there is to know, in dictionaries of tensors, for ``torch.save``.

        The statistics that a model has are in its own ``state_dict``, to be saved with it.
        """
        return {
            "initial": dict(self._initial),
            "tasks": {label: dict(tensors) for label, tensors in self._tasks.items()},
            "latest": self.latest,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the statistics of :meth:`state_dict`.

        Raises:
            ValueError: if ``state`` is not such a dictionary.
        """
        keys = self.state_dict().keys()
        if not isinstance(state, Mapping) or state.keys() != keys:
            got = sorted(state) if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(f"state must be a dictionary with the keys {sorted(keys)}, got {got}")
        if state["latest"] is not None and state["latest"] not in state["tasks"]:
            raise ValueError(
                f"state['latest'] must be one of the tasks {list(state['tasks'])}, got "
                f"{state['latest']}"
            )
        initial = {n: t.clone() for n, t in state["initial"].items()}
        tasks = {
            label: {n: t.clone() for n, t in tensors.items()}
            for label, tensors in state["tasks"].items()
        }
        exchange(self, latest=state["latest"], _initial=initial, _tasks=tasks)

    def _with_initial(self, model: nn.Module) -> dict[str, Tensor]:
        """Initial statistics, of layers that are new as they are now."""
        return _copies(model) | self._initial


def require_statistics(model: nn.Module) -> None:
    """Refuse models without running statistics.

    Raises:
        ValueError: naming the layers that have them.
    """
    if not _statistics(model):
        raise ValueError(
            f"{type(model).__name__} has no layer with running statistics (BatchNorm, "
            "SyncBatchNorm, or InstanceNorm with track_running_stats=True), so there are none to "
            "keep for each task"
        )


@torch.no_grad()
def _put(model: nn.Module, values: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> None:
    """Values of this device and dtype or another; initial ones for layers without."""
    buffers = _statistics(model)
    for name, buffer in buffers.items():
        shape = values.get(name, initial[name]).shape
        if shape != buffer.shape:
            raise ValueError(
                f"the statistics of {name!r} have shape {tuple(shape)}, but the model's buffer "
                f"has {tuple(buffer.shape)}; they must be those of this model"
            )
    for name, buffer in buffers.items():
        buffer.copy_(values.get(name, initial[name]))


def _statistics(model: nn.Module) -> dict[str, Tensor]:
    """The buffers of all layers that track running statistics, by name."""
    buffers = {}
    for prefix, module in model.named_modules():
        if not isinstance(module, _NormBase):
            continue
        for name, buffer in module.named_buffers(prefix, recurse=False):
            if name.rpartition(".")[2] not in _BUFFERS:
                continue
            if isinstance(buffer, nn.parameter.UninitializedBuffer):
                raise ValueError(
                    f"layer {prefix!r} ({type(module).__name__}) does not know its size yet; run "
                    "the model on a batch first"
                )
            buffers[name] = buffer
    return buffers


def _copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.detach().clone() for name, buffer in _statistics(model).items()}
