"""Fisher values on the samples of an experience, for the regularisers of a hypernetwork."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from avalanche.training.templates import SupervisedTemplate
from torch import Tensor

from avalanche_hnet.core.common.evaluation import random_numbers_kept
from avalanche_hnet.core.common.likelihoods import Likelihood
from avalanche_hnet.core.common.processes import are_several, share_generator
from avalanche_hnet.core.common.samples import as_samples
from avalanche_hnet.core.fisher.batches import random_subset
from avalanche_hnet.core.fisher.diagonal import diagonal_fisher
from avalanche_hnet.core.fisher.kronecker_layer import KroneckerFisher
from avalanche_hnet.core.fisher.share import Share, own_part
from avalanche_hnet.data.experiences import whole
from avalanche_hnet.data.in_order import batches_in_order
from avalanche_hnet.data.processes import rows_of_process
from avalanche_hnet.models.hyper_model import HyperModel
from avalanche_hnet.models.weights_per_sample import WeightsPerSample
from avalanche_hnet.plugins.in_memory import store_of
from avalanche_hnet.plugins.strategy_batch import taken_apart

Batch = tuple[Any, ...]


class ExperienceFisher:
    """The :class:`FisherSource` of the experience that a strategy has just trained on.

    Samples have their evaluation transforms, and the model is in evaluation mode.
    """

    def __init__(
        self, strategy: SupervisedTemplate, model: HyperModel, likelihood: Likelihood | None
    ) -> None:
        self._strategy = strategy
        self._dataset = whole(strategy.experience).dataset.eval()
        self._model = model
        self._likelihood = likelihood
        self.n_samples = len(self._dataset)

    def of_shared_parameters(self, max_samples: int | None) -> dict[str, Tensor]:
        """Mean squared gradients of θ, by name, from at most ``max_samples`` samples."""
        batches, max_samples = _shared(self._batches, self.n_samples, max_samples)
        fisher = self._model.of_hypernetwork(
            diagonal_fisher(
                self._model, batches, likelihood=self._likelihood, max_samples=max_samples
            )
        )
        theta = self._model.hypernetwork.shared_parameters()
        return {name: fisher[name] for name in theta if name in fisher}

    def factors_of_shared_parameters(
        self, fisher: Callable[..., KroneckerFisher], max_samples: int | None
    ) -> KroneckerFisher:
        """The Fisher of θ as ``fisher`` computes it; chunks are positions that share weights."""
        theta = self._model.hypernetwork.shared_parameters().values()
        if not any(p.requires_grad for p in theta):
            return KroneckerFisher({}, {})
        model = WeightsPerSample(self._model)

        def small(rows: Tensor | None) -> Iterable[Batch]:
            return model.small(lambda: self._batches(rows))

        batches, max_samples = _shared(small, self.n_samples, max_samples)
        factors = fisher(model, batches, likelihood=self._likelihood, max_samples=max_samples)
        return model.of_hypernetwork(factors)

    def of_weights(self, task: int, max_samples: int | None) -> Tensor:
        """Mean squared gradients (W,) of the weights generated for a task of the experience."""
        label = self._model.task_labels[task]

        def of_task(rows: Tensor | None) -> Iterable[Batch]:
            return ((as_samples(x)[t == label], y[t == label]) for x, y, t in self._batches(rows))

        batches, max_samples = _shared(of_task, self.n_samples, max_samples)
        fisher = diagonal_fisher(
            self._model.main_network(label),
            batches,
            likelihood=self._likelihood,
            max_samples=max_samples,
        )
        return self._model.flatten_main_network(fisher)

    def _batches(self, rows: Tensor | None) -> Iterator[Batch]:
        strategy = self._strategy
        size = max(strategy.train_mb_size, strategy.eval_mb_size)
        store, device = store_of(strategy), strategy.device
        for batch in batches_in_order(self._dataset, store, device, size, rows=rows):
            yield taken_apart(strategy, batch, with_task_labels=True)


def _shared(
    batches: Callable[[Tensor | None], Iterable[Batch]], n_samples: int, max_samples: int | None
) -> tuple[Iterable[Batch], int | None]:
    """This process's part of the samples of an experience, and how many of it to draw.

    Args:
        batches: makes batches of samples with these numbers; None for all.
        n_samples: of the experience.
        max_samples: so many are to be drawn from all, at most.
    """
    if not are_several():
        return batches(None), max_samples
    if max_samples is None:
        return Share(batches(rows_of_process(None, n_samples))), None
    with random_numbers_kept():
        share_generator(None)  # so that all draw the same
        return Share([*own_part(random_subset(batches(None), max_samples, None))]), None
