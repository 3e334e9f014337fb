"""Batches cut out of tensors, in place of a loader that collects single samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import torch
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader, MultiDatasetSampler
from torch import Tensor
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader, IterableDataset

_BLOCK = 4096  # indices of so many batches go to the device at once


class Sampling(NamedTuple):
    """What a loader loads.

    Attributes:
        dataset: of N samples.
        collate: makes a batch of a list of samples.
        batches: lists of numbers of samples, drawn anew whenever they are iterated over.
        generator: of the loader's random numbers; None is PyTorch's global one.
        ahead: whether batches can be drawn ahead of the training, because nothing but the start of
            an epoch takes random numbers.
        num_workers: processes for the loading.
    """

    dataset: Any
    collate: Callable[[Any], Any]
    batches: Iterable[list[int]]
    generator: torch.Generator | None
    num_workers: int
    ahead: bool


def sampling_of(loader: Any) -> Sampling | None:
    """What a loader of PyTorch's or Avalanche's loads; None for any other."""
    if isinstance(loader, MultiDatasetDataLoader):
        if any(
            getattr(type(loader), name) is not getattr(MultiDatasetDataLoader, name)
            for name in ("__iter__", "_get_loader", "_make_pytorch_loader")
        ):
            return None
        options = loader.loader_kwargs
        # As in the loader itself, which also searches all data sets for a certain file format.
        samplers = loader._create_samplers(
            loader.datasets, loader.batch_sizes, loader.distributed_sampling, options
        )
        batches = MultiDatasetSampler(
            loader.datasets,
            samplers,
            termination_dataset_idx=loader.termination_dataset,
            oversample_small_datasets=loader.oversample_small_datasets,
            never_ending=loader.never_ending,
        )
        return Sampling(
            ConcatDataset(loader.datasets),
            options["collate_fn"],
            batches,
            options.get("generator"),
            options.get("num_workers", 0),
            ahead=len(loader.datasets) == 1 and not loader.never_ending,
        )
    if (
        isinstance(loader, DataLoader)
        and type(loader).__iter__ is DataLoader.__iter__
        and loader.batch_sampler is not None
        and not isinstance(loader.dataset, IterableDataset)
    ):
        return Sampling(
            loader.dataset,
            loader.collate_fn,
            loader.batch_sampler,
            loader.generator,
            loader.num_workers,
            ahead=type(loader.batch_sampler) is BatchSampler,
        )
    return None


class InMemoryLoader:
    """The same batches as those of a loader, also under the same random seed.

    Args:
        sampling: what the loader loads.
        columns: of N rows each, what makes up the samples.
        n_batches: number of batches.
    """

    def __init__(self, sampling: Sampling, columns: list[Tensor], n_batches: int) -> None:
        self.sampling = sampling
        self.columns = columns
        self.n_batches = n_batches
        self._labels: Tensor | None = None  # of the latest batch

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[list[Tensor]]:
        batches = iter(self.sampling.batches)
        # A DataLoader takes this number from the random numbers, too, for its workers.
        torch.empty((), dtype=torch.int64).random_(generator=self.sampling.generator)
        size = _BLOCK if self.sampling.ahead else 1
        while block := list(islice(batches, size)):
            rows = torch.tensor([row for batch in block for row in batch])
            rows = rows.to(self.columns[0].device, non_blocking=True)
            for chosen in rows.split([len(batch) for batch in block]):
                batch = [column.index_select(0, chosen) for column in self.columns]
                self._labels = batch[-1] if len(batch) > 2 else None
                yield batch

    def only_task(self, labels: Tensor) -> int | None:
        """The task label of all samples, if there is one, and ``labels`` are those of a batch.

        It is known without looking at the batch, which on a GPU would wait for it.
        """
        return self._only_label if labels is self._labels else None

    @cached_property
    def _only_label(self) -> int | None:
        labels = self.columns[-1]
        if labels.dim() != 1 or labels.is_floating_point():
            return None
        first = int(labels[0])
        return first if bool((labels == first).all()) else None
