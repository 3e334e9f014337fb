"""The samples of an experience that its Fisher is computed on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from avalanche.models.utils import is_multi_task_module
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor

from avalanche_hnet.core.common.processes import are_several
from avalanche_hnet.core.fisher.batches import Repeatable
from avalanche_hnet.core.fisher.share import Share
from avalanche_hnet.data.in_order import batches_in_order
from avalanche_hnet.data.processes import rows_of_process
from avalanche_hnet.plugins.in_memory import store_of
from avalanche_hnet.plugins.processes import model_of
from avalanche_hnet.plugins.strategy_batch import taken_apart


def fisher_batches(
    strategy: SupervisedTemplate,
    n_fisher: int | None,
    generator: torch.Generator | None,
    num_workers: int,
) -> tuple[Iterable[tuple[Any, ...]], int]:
    """Batches with evaluation transforms, of several processes each one's own, and of how many.

    Args:
        strategy: at the end of the experience.
        n_fisher: how many samples to draw at random; None for all.
        generator: draws them; None for PyTorch's global one, which is put back.
        num_workers: processes for the reading.

    Returns:
        The batches, and the number of samples of all processes together.
    """
    n_samples = len(strategy.experience.dataset)
    rows = _drawn(n_fisher, n_samples, generator)
    of_process = rows_of_process(rows, n_samples)
    batches = Repeatable(partial(_batches, strategy, of_process, num_workers))
    n_drawn = n_samples if rows is None else len(rows)
    return Share(batches) if are_several() else batches, n_drawn


def _drawn(
    n_fisher: int | None, n_samples: int, generator: torch.Generator | None
) -> Tensor | None:
    """Numbers of the samples to take; None for all."""
    if n_fisher is None or n_fisher >= n_samples:
        return None
    with torch.random.fork_rng(devices=[]):  # leave the training's random numbers alone
        device = "cpu" if generator is None else generator.device
        return torch.randperm(n_samples, generator=generator, device=device)[:n_fisher]


def _batches(
    strategy: SupervisedTemplate, rows: Tensor | None, num_workers: int
) -> Iterator[tuple[Any, ...]]:
    dataset = strategy.experience.dataset.eval()
    size = max(strategy.train_mb_size, strategy.eval_mb_size)
    store, device = store_of(strategy), strategy.device
    batches = batches_in_order(dataset, store, device, size, rows=rows, num_workers=num_workers)
    multi_task = is_multi_task_module(model_of(strategy))
    for batch in batches:
        yield taken_apart(strategy, batch, with_task_labels=multi_task)
