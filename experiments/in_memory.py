"""Benchmarks held in memory, with a part of the training data held out if wanted."""

from __future__ import annotations

import torch
from avalanche.benchmarks import (
    CLExperience,
    CLScenario,
    benchmark_from_datasets,
    with_task_labels,
)
from avalanche.benchmarks.utils import (
    AvalancheDataset,
    ConstantSequence,
    DataAttribute,
    TaskLabels,
)
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

HELD_OUT = 0.1


def in_memory(benchmark: CLScenario, *, validate: bool) -> CLScenario:
    """The same experiences with all (deterministic) transforms applied once.

    With ``validate`` the test stream is a random tenth of the training data, the same in every
    run, which the training stream then lacks.
    """
    train, test = [], []
    pairs = zip(benchmark.train_stream, benchmark.test_stream, strict=True)
    for seen, unseen in tqdm(list(pairs), desc="Reading", delay=3, disable=None, leave=False):
        x, y = _tensors(seen)
        if validate:
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
            n_held_out = int(HELD_OUT * len(x))
            held_out, kept = order[:n_held_out], order[n_held_out:]
            train.append(_dataset(x[kept], y[kept], seen.task_label))
            test.append(_dataset(x[held_out], y[held_out], seen.task_label))
        else:
            train.append(_dataset(x, y, seen.task_label))
            test.append(_dataset(*_tensors(unseen), unseen.task_label))
    stored = with_task_labels(benchmark_from_datasets(train=train, test=test))
    for experience in (*stored.train_stream, *stored.test_stream):
        experience.classes_in_this_experience = sorted(experience.dataset.targets.uniques)
    return stored


def _tensors(experience: CLExperience) -> tuple[Tensor, Tensor]:
    dataset = experience.dataset.eval()
    loader = DataLoader(dataset, batch_size=500, collate_fn=dataset.collate_fn)
    x, y = zip(*((batch[0], batch[1]) for batch in loader), strict=True)
    return torch.cat(x), torch.cat(y)


def _dataset(x: Tensor, y: Tensor, task_label: int) -> AvalancheDataset:
    return AvalancheDataset(
        TensorDataset(x, y),
        data_attributes=[
            DataAttribute(y.tolist(), "targets"),
            TaskLabels(ConstantSequence(task_label, len(y))),
        ],
    )
