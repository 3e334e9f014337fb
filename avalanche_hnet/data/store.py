"""Keeps data sets as tensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from avalanche_hnet.core.common.evaluation import random_numbers_kept
from avalanche_hnet.data.progress import with_bar
from avalanche_hnet.data.randomness import require_deterministic
from avalanche_hnet.data.separable import is_known, require_columns, require_separable
from avalanche_hnet.data.structure import Structure
from avalanche_hnet.data.unkeepable import UnkeepableError, UnsplittableError

Columns = list[Tensor]
Collate = Callable[[Any], Any]

_CHUNK = 256


class _Entry(NamedTuple):
    columns: Columns
    temporary: bool
    kept_alive: object  # the key has the addresses of its parts


class TensorStore:
    """Reads each data set once, its transforms applied, and keeps it in memory.

    What was used longest ago is dropped if all together would need more than the limit.

    Args:
        memory_limit: in bytes.
        deterministic: classes of transforms, or of data sets, that are taken to give the same
            sample each time, although it does not seem so.
    """

    def __init__(self, memory_limit: int, deterministic: Sequence[type] = ()) -> None:
        self.memory_limit = memory_limit
        self.deterministic = tuple(deterministic)
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._unsplittable: dict[Hashable, tuple[str, object]] = {}  # why, and what is kept alive

    def get(
        self,
        dataset: Any,
        collate: Collate,
        device: torch.device,
        *,
        num_workers: int = 0,
        temporary: bool = False,
    ) -> Columns:
        """The columns of all batches that ``collate`` makes of the data set, put together.

        Args:
            dataset: of N samples, which must not change.
            collate: makes a batch, a sequence of tensors, of a list of samples.
            device: where the tensors are kept.
            num_workers: processes for the reading.
            temporary: let :meth:`drop_temporary` drop it.

        Raises:
            UnkeepableError: if samples are random, or need more memory than the limit.
            UnsplittableError: if batches are not sequences of tensors, one row for each sample,
                which is the same whatever the other samples are.
        """
        structure = Structure(dataset, collate)
        key = (structure.key, str(device))
        if key in self._entries:
            entry = self._entries.pop(key)
            self._entries[key] = entry._replace(temporary=entry.temporary and temporary)
            return entry.columns
        needed = self.require(dataset, collate, structure)
        while self._entries and self._used() + needed > self.memory_limit:
            self._entries.popitem(last=False)
        with self._remembering(structure, dataset, collate):
            columns = _read(dataset, collate, device, num_workers)
        self._entries[key] = _Entry(columns, temporary, (dataset, collate))
        return columns

    def require(self, dataset: Any, collate: Collate, structure: Structure | None = None) -> int:
        """Refuse what :meth:`get` would refuse, from a look at the first samples.

        Returns:
            The bytes that all samples need.

        Raises:
            UnkeepableError: see :meth:`get`.
        """
        structure = structure or Structure(dataset, collate)
        if structure.key in self._unsplittable:
            raise UnsplittableError(self._unsplittable[structure.key][0])
        require_deterministic(dataset, collate, structure, self.deterministic)
        with self._remembering(structure, dataset, collate):
            needed = _size_of_first(dataset, collate) * len(dataset)
        if needed > self.memory_limit:
            raise UnkeepableError(
                f"{len(dataset)} samples need {needed:,} bytes, but memory_limit is "
                f"{self.memory_limit:,}; raise it, or leave InMemoryPlugin out "
                "(of a HypernetTemplate: in_memory=False)"
            )
        return needed

    def holds(self, dataset: Any, collate: Collate, device: torch.device) -> bool:
        """Whether :meth:`get` has no need to read it."""
        return (Structure(dataset, collate).key, str(device)) in self._entries

    def drop_temporary(self, but: tuple[Any, Collate]) -> None:
        """Drop the data sets that were read as ``temporary``, except for one."""
        kept = Structure(*but).key
        for key, entry in list(self._entries.items()):
            if entry.temporary and key[0] != kept:  # type: ignore[index]
                del self._entries[key]

    def __getstate__(self) -> dict[str, Any]:
        # Copies and checkpoints come without the data, whose keys mean nothing elsewhere.
        return {**vars(self), "_entries": OrderedDict(), "_unsplittable": {}}

    @contextmanager
    def _remembering(self, structure: Structure, dataset: Any, collate: Collate) -> Iterator[None]:
        """What cannot be split is not read in vain again."""
        try:
            yield
        except UnsplittableError as error:
            self._unsplittable[structure.key] = str(error), (dataset, collate)
            raise

    def _used(self) -> int:
        return sum(t.nbytes for entry in self._entries.values() for t in entry.columns)


def _size_of_first(dataset: Any, collate: Collate) -> int:
    """Bytes of one sample."""
    return sum(column.nbytes for column in require_columns(collate([dataset[0]])))


class _Checked:
    """A collate function that refuses batches which are more than their samples."""

    def __init__(self, collate: Collate) -> None:
        self._collate = collate

    def __call__(self, samples: list[Any]) -> Columns:
        batch = require_columns(self._collate(samples))
        require_separable(samples, batch, self._collate)
        return batch


def _read(dataset: Any, collate: Collate, device: torch.device, num_workers: int) -> Columns:
    loader = DataLoader(
        dataset,
        batch_size=_CHUNK,
        collate_fn=collate if is_known(collate) else _Checked(collate),
        num_workers=num_workers,
        generator=torch.Generator(),  # not the global one, which is the training's
    )
    columns: Columns = []
    start = 0
    with random_numbers_kept():
        for batch in with_bar(loader):
            if not columns:
                columns = [
                    torch.empty((len(dataset), *c.shape[1:]), dtype=c.dtype, device=device)
                    for c in batch
                ]
            for column, part in zip(columns, batch, strict=True):
                if (column.shape[1:], column.dtype) != (part.shape[1:], part.dtype):
                    raise UnsplittableError(
                        "samples must all have the same shape and type to be kept in memory, got "
                        f"{tuple(column.shape[1:])}, {column.dtype} and {tuple(part.shape[1:])}, "
                        f"{part.dtype}"
                    )
                column[start : start + len(part)] = part
            start += len(batch[0])
    return columns
