"""How the processes of a group share data, and what Avalanche's loaders lack for it."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader, MultiDatasetSampler
from torch import Tensor
from torch.utils.data import BatchSampler, DistributedSampler

from avalanche_hnet.core.common.processes import (
    are_several,
    n_processes,
    process_number,
    take_first,
)
from avalanche_hnet.data.loader import InMemoryLoader


def rows_of_process(rows: Tensor | None, n_samples: int) -> Tensor | None:
    """Numbers of the samples that this process sees to; each is one process's.

    Args:
        rows: those of all processes, as the main process has drawn them; None for all.
        n_samples: of the data set.

    Returns:
        The numbers; None for all, if there is a single process.
    """
    if not are_several():
        return rows
    if rows is None:
        rows = torch.arange(n_samples)
    else:
        take_first([rows])
    return rows[process_number() :: n_processes()]


def evaluate_all(loader: Any) -> None:
    """Let each process have all samples of a loader, which is not in use yet.

    Avalanche's metrics are not put together from several processes, and its sampler gives some
    samples twice so that all processes have the same number.
    """
    if are_several() and isinstance(loader, MultiDatasetDataLoader) and loader.distributed_sampling:
        loader.distributed_sampling = False
        lengths = zip(loader.datasets, loader.batch_sizes, strict=True)
        loader.n_iterations = max(-(-len(dataset) // size) for dataset, size in lengths)


def shuffle_anew(loader: Any, epoch: int) -> None:
    """Let a loader draw another order of the samples in each epoch, the same in all processes.

    Avalanche's own, under a process group, have one order for all epochs and seeds.

    Args:
        loader: of an epoch that has not begun.
        epoch: its number.

    Raises:
        ValueError: if the loader does not share the samples among the processes.
    """
    if not are_several():
        return
    seed = torch.tensor(torch.initial_seed() % 2**31)
    take_first([seed])
    number = int(seed) + epoch
    if isinstance(loader, InMemoryLoader):
        batches = loader.sampling.batches
        _require_shared(batches, "InMemoryLoader")
        _set_epoch(batches, number)
    elif isinstance(loader, MultiDatasetDataLoader) and loader.distributed_sampling:
        create = type(loader)._create_samplers

        def create_samplers(*args: Any) -> list[BatchSampler]:
            samplers: list[BatchSampler] = create(*args)
            for sampler in samplers:
                _set_epoch(sampler, number)
            return samplers

        loader._create_samplers = create_samplers
    else:
        sampler = getattr(loader, "batch_sampler", None)
        _require_shared(sampler, type(loader).__name__)
        _set_epoch(sampler, number)


def _samplers(batches: Any) -> list[Any]:
    """Those that choose the samples of batches."""
    parts = batches.samplers if isinstance(batches, MultiDatasetSampler) else [batches]
    return [getattr(part, "sampler", part) for part in parts]


def _require_shared(batches: Any, name: str) -> None:
    if all(isinstance(sampler, DistributedSampler) for sampler in _samplers(batches)):
        return
    raise ValueError(
        f"the samples of the training's {name} are not shared among the {n_processes()} "
        "processes, each of which would train on all of them; Avalanche shares those of "
        "experiences with task labels (avalanche.benchmarks.with_task_labels) and of its own "
        "loaders, unless distributed_sampling=False"
    )


def _set_epoch(batches: Any, epoch: int) -> None:
    for sampler in _samplers(batches):
        if isinstance(sampler, DistributedSampler):
            sampler.set_epoch(epoch)
