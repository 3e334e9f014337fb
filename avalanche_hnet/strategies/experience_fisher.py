"""Fisher values on the samples of an experience, for the regularisers of a hypernetwork."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from avalanche.training.templates import SupervisedTemplate
from torch import Tensor

from avalanche_hnet.core.common.likelihoods import Likelihood
from avalanche_hnet.core.common.samples import as_samples
from avalanche_hnet.core.fisher.diagonal import diagonal_fisher
from avalanche_hnet.core.fisher.kronecker_layer import KroneckerFisher
from avalanche_hnet.data.experiences import whole
from avalanche_hnet.data.in_order import batches_in_order
from avalanche_hnet.models.hyper_model import HyperModel
from avalanche_hnet.models.weights_per_sample import WeightsPerSample
from avalanche_hnet.plugins.in_memory import store_of
from avalanche_hnet.plugins.strategy_batch import taken_apart


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
        fisher = self._model.of_hypernetwork(
            diagonal_fisher(
                self._model, self._batches(), likelihood=self._likelihood, max_samples=max_samples
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
        factors = fisher(
            model,
            model.small(self._batches),
            likelihood=self._likelihood,
            max_samples=max_samples,
        )
        return model.of_hypernetwork(factors)

    def of_weights(self, task: int, max_samples: int | None) -> Tensor:
        """Mean squared gradients (W,) of the weights generated for a task of the experience."""
        label = self._model.task_labels[task]
        of_task = ((as_samples(x)[t == label], y[t == label]) for x, y, t in self._batches())
        fisher = diagonal_fisher(
            self._model.main_network(label),
            of_task,
            likelihood=self._likelihood,
            max_samples=max_samples,
        )
        return self._model.flatten_main_network(fisher)

    def _batches(self) -> Iterator[tuple[Any, ...]]:
        strategy = self._strategy
        size = max(strategy.train_mb_size, strategy.eval_mb_size)
        for batch in batches_in_order(self._dataset, store_of(strategy), strategy.device, size):
            yield taken_apart(strategy, batch, with_task_labels=True)
