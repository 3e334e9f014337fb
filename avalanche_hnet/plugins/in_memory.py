"""Data read once and kept in memory, as a plugin for Avalanche's strategies."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from avalanche.training.plugins import GSS_greedyPlugin, SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate

from avalanche_hnet.core.common.arguments import at_least
from avalanche_hnet.data.loader import InMemoryLoader, sampling_of
from avalanche_hnet.data.processes import evaluate_all
from avalanche_hnet.data.store import TensorStore
from avalanche_hnet.data.unkeepable import UnsplittableError
from avalanche_hnet.plugins.checkpointing.kinds import register_checkpoint_state


class InMemoryPlugin(SupervisedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Serves batches from tensors in memory, in training and in evaluation.

    Avalanche's loaders fetch single samples, transform and collate them anew in each epoch. Here
    every data set is read once, its transforms applied, onto the strategy's device, and batches
    are cut out of it. They are those that the strategy's own loader would make from the same
    random seed, whatever plugins did to it (replay, task balance, …). A loader that is neither
    Avalanche's nor PyTorch's stays as it is, with a warning. So does one whose batches are more
    than their samples put together: if its collate function pads to the longest sample of a batch,
    centres or sorts it, or makes dictionaries; and that of ``GSS_greedyPlugin``, whose memory
    changes while batches are made of it.

    The place among a strategy's plugins does not matter. The Fisher of :class:`PriorEWCPlugin` and
    of hypernetworks is computed from memory, too.

    Training data are dropped when the next experience begins, test data are kept, unless they
    would together exceed the limit; then those used longest ago are dropped. Data sets must not be
    changed in between.

    ``num_workers`` of ``strategy.train`` and ``eval`` only read the data; ``pin_memory`` and
    ``persistent_workers`` have no effect.

    Args:
        memory_limit: for all data, in bytes; 4 GiB by default.
        deterministic: classes of transforms (or of data sets) that give the same sample each time,
            although torchvision's others of that name do not, or they take random numbers.

    Raises:
        TypeError, ValueError: if an argument is out of its range. At the start of an experience or
            its evaluation: if samples are random (random transforms would be frozen, the same in
            every epoch), or need more memory than the limit.
    """

    def __init__(
        self, memory_limit: int = 4 * 2**30, *, deterministic: Sequence[type] = ()
    ) -> None:
        super().__init__()
        at_least(1, memory_limit=memory_limit)
        is_list = isinstance(deterministic, (list, tuple))
        if not is_list or not all(isinstance(kind, type) for kind in deterministic):
            raise TypeError(
                "deterministic must be a list of classes, such as "
                f"[torchvision.transforms.GaussianBlur], got {deterministic!r}"
            )
        self._store = TensorStore(memory_limit, deterministic)
        self._has_warned = False

    @property
    def store(self) -> TensorStore:
        """Where the data are kept."""
        return self._store

    def before_train_dataset_adaptation(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Refuse what cannot be kept, before anything is changed."""
        dataset = strategy.experience.dataset.train()
        if len(dataset):
            with suppress(UnsplittableError):  # then its own loader will serve it
                self._store.require(dataset, dataset.collate_fn)

    def before_training_exp(
        self,
        strategy: SupervisedTemplate,
        num_workers: int = 0,
        pin_memory: bool | None = None,
        persistent_workers: bool = False,
        **kwargs: Any,
    ) -> None:
        """Say what is ignored."""
        options = {
            "num_workers": num_workers,
            "pin_memory": pin_memory,
            "persistent_workers": persistent_workers,
        }
        if ignored := [f"{name}={value}" for name, value in options.items() if value]:
            warnings.warn(
                f"{', '.join(ignored)} ignored, but for reading the data once: batches come from "
                "memory",
                stacklevel=2,
            )

    def before_training_epoch(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Replace the loader, after all plugins have made theirs."""
        self._replace_loader(strategy, training=True)

    def before_eval_exp(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Replace the loader."""
        self._replace_loader(strategy, training=False)

    def _replace_loader(self, strategy: SupervisedTemplate, *, training: bool) -> None:
        loader = strategy.dataloader
        if isinstance(loader, InMemoryLoader):
            return
        if not training:
            evaluate_all(loader)
        sampling = sampling_of(loader)
        if sampling is None:
            warnings.warn(
                f"InMemoryPlugin cannot serve a {type(loader).__name__}, which is no loader of "
                "Avalanche's or PyTorch's over data of known length; it is left as it is",
                stacklevel=2,
            )
            return
        if len(sampling.dataset) == 0:
            return
        if training and any(isinstance(plugin, GSS_greedyPlugin) for plugin in strategy.plugins):
            self._leave("GSS_greedyPlugin changes its memory while batches are made of it")
            return
        if training:
            self._store.drop_temporary(but=(sampling.dataset, sampling.collate))
        try:
            columns = self._store.get(
                sampling.dataset,
                sampling.collate,
                strategy.device,
                num_workers=sampling.num_workers,
                temporary=training,
            )
        except UnsplittableError as error:
            self._leave(str(error))
            return
        strategy.dataloader = InMemoryLoader(sampling, columns, len(loader))

    def _leave(self, why: str) -> None:
        """Say once that the data come from Avalanche's own loader."""
        if not self._has_warned:
            warnings.warn(f"{why}; Avalanche's own loader serves them", stacklevel=3)
        self._has_warned = True


# The data are read again.
register_checkpoint_state(InMemoryPlugin, save=lambda plugin: {}, load=lambda plugin, state: None)


def store_of(strategy: SupervisedTemplate) -> TensorStore | None:
    """The store of a strategy's :class:`InMemoryPlugin`; None if it has no such plugin."""
    return next((p.store for p in strategy.plugins if isinstance(p, InMemoryPlugin)), None)
