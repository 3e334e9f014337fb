"""Batches cut out of tensors, in place of a loader that collects single samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor
from torch.utils.data import DataLoader


class TensorBatches:
    """Mini-batches of tensors, shuffled anew in each epoch with PyTorch's global generator."""

    def __init__(
        self, tensors: list[Tensor], batch_size: int, *, shuffle: bool, drop_last: bool = False
    ) -> None:
        self.tensors = tensors
        self.batch_size = batch_size
        self.shuffle = shuffle
        n, rest = divmod(len(tensors[0]), batch_size)
        self._length = n if drop_last or rest == 0 else n + 1

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[list[Tensor]]:
        n = len(self.tensors[0])
        order = torch.randperm(n) if self.shuffle else torch.arange(n)
        order = order.to(self.tensors[0].device)
        for index in order.split(self.batch_size)[: self._length]:
            yield [tensor[index] for tensor in self.tensors]


class TensorBatchesPlugin(SupervisedPlugin):
    """Serves experiences whose data never change from memory, on the strategy's device."""

    def __init__(self) -> None:
        super().__init__()
        self._tensors: dict[Any, list[Tensor]] = {}

    def before_training_exp(
        self, strategy: SupervisedTemplate, drop_last: bool = False, **kwargs: Any
    ) -> None:
        """Replace the loader."""
        strategy.dataloader = TensorBatches(
            self._stored(strategy), strategy.train_mb_size, shuffle=True, drop_last=drop_last
        )

    def before_eval_exp(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Replace the loader."""
        strategy.dataloader = TensorBatches(
            self._stored(strategy), strategy.eval_mb_size, shuffle=False
        )

    def _stored(self, strategy: SupervisedTemplate) -> list[Tensor]:
        experience, dataset = strategy.experience, strategy.adapted_dataset
        # Joint training makes an experience for all, whose samples come from the dataset itself.
        key = (experience, len(dataset))
        if key not in self._tensors:
            loader = DataLoader(dataset, batch_size=1000, collate_fn=dataset.collate_fn)
            columns = zip(*loader, strict=True)
            self._tensors[key] = [torch.cat(column).to(strategy.device) for column in columns]
        return self._tensors[key]
