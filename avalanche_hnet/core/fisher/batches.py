"""Batches of samples, as the Fisher goes through them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_hnet.core.common.evaluation import usable
from avalanche_hnet.core.common.samples import Samples, as_samples, structure_of
from avalanche_hnet.core.common.structures import described, map_tensors
from avalanche_hnet.core.common.task_labels import takes_task_labels

# In batches that are mappings: as Hugging Face and as Avalanche name them.
_TARGETS, _TASK_LABELS = "labels", "targets_task_labels"

TaskBatch = tuple[Tensor | Samples, Tensor, Tensor | None]


@dataclass(frozen=True, eq=False)
class Repeatable:
    """Batches that are made anew whenever they are gone through, and not kept.

    Attributes:
        make: begins to make them.
    """

    make: Callable[[], Iterator[Any]]

    def __iter__(self) -> Iterator[Any]:
        return self.make()


def single_task_batches(
    model: nn.Module, batches: Iterable[Any], device: torch.device
) -> Iterator[TaskBatch]:
    """The batches as ``(x, y, task_labels)``, split by task if the model takes task labels."""
    for batch in batches:
        yield from _by_task(model, _columns(batch), device)


def random_subset(
    batches: Iterable[Any], size: int, generator: torch.Generator | None
) -> Iterator[Sequence[Any]]:
    """One pass over ``batches`` that keeps the ``size`` samples with the smallest random keys."""
    # Samples that were padded in another way have other shapes, and stay apart.
    kept: dict[str, tuple[Tensor, list[Any]]] = {}
    step = 1
    for batch in map(_columns, batches):
        step = max(step, len(batch[0]))
        device = torch.device("cpu") if generator is None else generator.device
        drawn = torch.rand(len(batch[0]), generator=generator, device=device, dtype=torch.float64)
        form = _form(batch)
        keys, values = kept.get(form, (drawn[:0].cpu(), [v[:0] for v in batch]))
        keys = torch.cat([keys, drawn.cpu()])
        kept[form] = keys, [torch.cat(pair) for pair in zip(values, batch, strict=True)]
        every_key = torch.cat([keys for keys, _ in kept.values()])
        if len(every_key) > size:
            last = every_key.topk(size, largest=False).values.max()
            kept = {f: _chosen(keys <= last, keys, values) for f, (keys, values) in kept.items()}
    for _, tensors in kept.values():
        yield from zip(*(values.split(step) for values in tensors), strict=True)


def _by_task(model: nn.Module, batch: Sequence[Any], device: torch.device) -> Iterator[TaskBatch]:
    """The parts of a batch ``[x, y]`` or ``[x, y, task_labels]``."""
    x, y = usable(batch[0].to(device)), usable(batch[1].to(device))
    if len(x) == 0:
        return
    if len(batch) == 2 or not takes_task_labels(model):
        yield x, y, None
        return
    labels = batch[-1].to(device)
    for label in labels.unique():
        chosen = labels == label
        yield x[chosen], y[chosen], labels[chosen]


def _columns(batch: Any) -> list[Any]:
    """``[x, y]`` or ``[x, y, task_labels]`` of a batch."""
    if isinstance(batch, Mapping) and _TARGETS in batch:
        names = [name for name in (_TARGETS, _TASK_LABELS) if name in batch]
        x = {name: values for name, values in batch.items() if name not in names}
        return [as_samples(x), *(batch[name] for name in names)]
    if isinstance(batch, Mapping) or not isinstance(batch, (tuple, list)) or len(batch) < 2:
        raise ValueError(
            "batches must yield (x, y) or (x, y, ..., task_labels), or mappings with the targets "
            f"under {_TARGETS!r}, got {described(batch)}"
        )
    return [as_samples(batch[0]), batch[1], *batch[2:][-1:]]


def _form(batch: Sequence[Any]) -> str:
    """Equal for batches whose samples can be put together: in the same structure and shapes."""
    return repr([map_tensors(_kind, structure_of(values)) for values in batch])


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, *tensor.shape[1:]


def _chosen(mask: Tensor, keys: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    return keys[mask], [values[mask.to(values.device)] for values in tensors]
