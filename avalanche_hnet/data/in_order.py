"""One pass over a data set, in its own order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from avalanche_hnet.core.common.structures import map_tensors
from avalanche_hnet.data.progress import with_bar
from avalanche_hnet.data.store import Columns, TensorStore
from avalanche_hnet.data.unkeepable import UnkeepableError


def batches_in_order(
    dataset: Any,
    store: TensorStore | None,
    device: torch.device,
    batch_size: int,
    *,
    rows: Tensor | None = None,
    num_workers: int = 0,
) -> Iterator[Any]:
    """Batches of a data set, from memory if there is a store that can keep it.

    What cannot be kept, for example because its transforms are random, is read in one pass. So
    are a few ``rows`` of what the store does not hold already.

    Args:
        dataset: of N samples, with a ``collate_fn``.
        store: keeps data sets in memory; None to read this one in one pass.
        device: of the batches.
        batch_size: number of samples of each batch, but the last.
        rows: numbers of the samples wanted, in this order; all by default.
        num_workers: processes for the reading.
    """
    columns = _kept(dataset, store, device, rows is None, num_workers)
    if columns is None:
        if rows is not None:
            dataset = dataset.subset(rows.tolist())
        yield from _read(dataset, device, batch_size, num_workers)
    elif rows is None:
        yield from (list(b) for b in zip(*(c.split(batch_size) for c in columns), strict=True))
    else:
        for chosen in rows.to(device).split(batch_size):
            yield [column.index_select(0, chosen) for column in columns]


def _kept(
    dataset: Any, store: TensorStore | None, device: torch.device, is_whole: bool, num_workers: int
) -> Columns | None:
    """All samples of the data set, from the store; None if they must be read in one pass."""
    if store is None or not (is_whole or store.holds(dataset, dataset.collate_fn, device)):
        return None
    try:
        return store.get(
            dataset, dataset.collate_fn, device, num_workers=num_workers, temporary=True
        )
    except UnkeepableError:
        return None


def _read(dataset: Any, device: torch.device, batch_size: int, num_workers: int) -> Iterator[Any]:
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        collate_fn=dataset.collate_fn,
        num_workers=num_workers,
        generator=torch.Generator(),  # not the global one, which is the training's
    )
    for batch in with_bar(loader):
        yield map_tensors(lambda tensor: tensor.to(device), batch)
