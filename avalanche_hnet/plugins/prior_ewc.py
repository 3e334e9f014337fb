"""Online EWC with an explicit prior, as a plugin for Avalanche's strategies."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any, get_args

import torch
from avalanche.models.utils import is_multi_task_module
from avalanche.training import JointTraining
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn

from avalanche_hnet.core.common.arguments import fraction
from avalanche_hnet.core.common.evaluation import undisturbed
from avalanche_hnet.core.common.likelihoods import Likelihood, resolve_likelihood
from avalanche_hnet.core.common.quadratic import Quadratic
from avalanche_hnet.core.fisher.batch_statistics import refuse_batch_statistics
from avalanche_hnet.core.fisher.diagonal import FisherKind, diagonal_fisher
from avalanche_hnet.core.posterior.gaussian import GaussianPosterior, PriorMean
from avalanche_hnet.models.active import active_elements
from avalanche_hnet.plugins.finite_loss import refuse_loss
from avalanche_hnet.plugins.in_memory import batches_in_order
from avalanche_hnet.plugins.publish import Histogram, publish


class PriorEWCPlugin(SupervisedPlugin):
    """Prior-focused continual learning with a diagonal Gaussian posterior over the weights.

    While an experience of N samples is trained, the loss per sample is

        mean NLL + 1/N [1/(2σ²) Σ_{active, not known} (φᵢ − μ₀ᵢ)² + (λ/2) Σ_{known} Λᵢ (φᵢ − φ*ᵢ)²]

    and after it the precision Λ takes in N times the Fisher (:class:`GaussianPosterior` has the
    formulas). The criterion is left as it is: where it is a multiple of the mean NLL, as the
    mean squared error is, the bracket is multiplied by the same factor.

    *Active* are the elements that the experience's loss depends on (:func:`active_elements`):
    of heads, those of its tasks and classes. Heads of other tasks feel neither the prior nor,
    unless replayed samples move them, the penalty.

    N counts the experience's own samples, and the Fisher is computed on them, in evaluation mode
    and with their evaluation transforms: replayed samples are in the posterior already.
    λ = γ = 1 is the Bayesian update.

    Published to the evaluator under ``PriorEWC/``, each ``log_every`` iterations: ``NLL`` (the
    value of the criterion), ``Prior``, ``EWC`` and their sum ``Loss``, as they enter the loss,
    without what other plugins add to it; after each experience
    minimum, maximum and histogram of ``Fisher`` and ``LogPrecision`` (natural logarithm) over
    the active elements (a histogram has at most 65,536 of them), and ``FisherSeconds`` and
    ``FisherSamples``.

    Args:
        ewc_lambda: λ ≥ 0, the weight of the penalty.
        prior_variance: σ² > 0.
        gamma: γ in [0, 1], how much of the precision from data is kept at each experience.
        fisher: ``"empirical"``, ``"sampled"`` or ``"exact"``, see :func:`diagonal_fisher`.
        n_fisher: number of samples for the Fisher, drawn at random; all by default.
        likelihood: by default read off the criterion: categorical for ``CrossEntropyLoss``,
            Gaussian with standard deviation 1 for ``MSELoss``. Must be given for any other
            criterion, which then is taken for its mean negative logarithm.
        prior_mean: ``"zero"``, or ``"initial"``: the weights before their first experience.
        train_from_scratch: forget the posterior at every experience, so that each is trained
            with the prior alone. The weights are not reset.
        log_every: iterations between two published losses, from the first of each experience
            on (where the penalty of what is known is still zero).
        generator: draws the samples of ``n_fisher`` and the labels of ``fisher="sampled"``; by
            default they come from PyTorch's global state, which is then put back as it was.

    Attributes:
        posterior: the :class:`GaussianPosterior`; save and load it with its ``state_dict``.

    Raises:
        ValueError: if an argument is out of its range. At the start of an experience: if the
            criterion's likelihood is unknown, the experience is empty, or the posterior was
            loaded from another architecture. While training: if the loss is not finite.
    """

    def __init__(
        self,
        ewc_lambda: float = 1.0,
        prior_variance: float = 1.0,
        gamma: float = 1.0,
        fisher: FisherKind = "empirical",
        n_fisher: int | None = None,
        likelihood: Likelihood | None = None,
        prior_mean: PriorMean = "zero",
        train_from_scratch: bool = False,
        log_every: int = 50,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= ewc_lambda < float("inf"):
            raise ValueError(f"ewc_lambda must be at least 0 and finite, got {ewc_lambda}")
        fraction(gamma=gamma)
        if fisher not in get_args(FisherKind):
            raise ValueError(f"fisher must be one of {get_args(FisherKind)}, got {fisher!r}")
        if n_fisher is not None and (not isinstance(n_fisher, int) or n_fisher < 1):
            raise ValueError(
                f"n_fisher must be an integer of at least 1, or None for all, got {n_fisher}"
            )
        if likelihood is not None and not isinstance(likelihood, Likelihood):
            raise TypeError(f"likelihood must be a Likelihood, got {likelihood!r}")
        if log_every < 1:
            raise ValueError(f"log_every must be at least 1, got {log_every}")
        self.ewc_lambda = ewc_lambda
        self.gamma = gamma
        self.fisher: FisherKind = fisher
        self.n_fisher = n_fisher
        self.likelihood = likelihood
        self.train_from_scratch = train_from_scratch
        self.log_every = log_every
        self.generator = generator
        self.posterior = GaussianPosterior(prior_variance, prior_mean)
        self._to_publish: dict[str, Tensor] = {}
        self._dormant: set[str] = set()
        self._parameters: dict[str, nn.Parameter] = {}
        self._active: dict[str, Tensor] = {}
        self._strengths: tuple[float, float] | None = None
        self._prior_term = self._ewc_term = Quadratic({}, {})

    def before_train_dataset_adaptation(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Refuse what cannot be trained, before anything is changed."""
        if len(strategy.experience.dataset) == 0:
            raise ValueError(
                f"experience {strategy.experience.current_experience} is empty; "
                "PriorEWCPlugin needs at least one sample"
            )
        if isinstance(strategy, JointTraining):
            raise ValueError(
                "PriorEWCPlugin has nothing to protect in JointTraining, which trains on all "
                "experiences at once; use JointTraining without it"
            )
        self._likelihood = resolve_likelihood(self.likelihood, strategy._criterion)
        with undisturbed(strategy.model):
            refuse_batch_statistics(strategy.model)

    def before_training_exp(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Take in the model as it is now, with the heads of this experience."""
        self._take_in(strategy)
        if self.train_from_scratch:
            self.posterior.forget()
        self._is_outdated = True  # other plugins may still change the model

    def after_eval(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """An evaluation in the middle of an experience may have grown the model."""
        self._is_outdated = True

    def before_backward(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Add the prior's and the earlier experiences' penalties to the loss."""
        if self._is_outdated:
            self._take_in(strategy)
        scale = self._likelihood.criterion_scale(strategy._criterion, strategy.mb_output)
        self._make_terms(scale / self._n_samples)
        prior, ewc = self._prior_term(self._parameters), self._ewc_term(self._parameters)
        total = strategy.loss + prior + ewc
        logs = strategy.clock.train_exp_iterations % self.log_every == 0
        # On a GPU the look at the loss would wait for it. It stays infinite or NaN, once it is.
        if (logs or total.is_cpu) and not isfinite(total.item()):
            found = (
                f"{strategy.loss.item()} before the penalties, prior {prior.item()}, "
                f"EWC {ewc.item()}"
            )
            refuse_loss(strategy, found, "learning rate or ewc_lambda")
        strategy.loss = total
        if logs:
            with torch.no_grad():
                nll = strategy._criterion(strategy.mb_output, strategy.mb_y)
            self._to_publish = {"NLL": nll, "Prior": prior, "EWC": ewc, "Loss": nll + prior + ewc}

    def after_backward(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Penalise heads of other tasks from when the loss (of replayed samples) moves them."""
        if any(self._parameters[name].grad is not None for name in self._dormant):
            self._dormant = {n for n in self._dormant if self._parameters[n].grad is None}
            self._strengths = None

    def after_training_iteration(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Publish the terms of the loss, every ``log_every`` iterations."""
        for name, value in self._to_publish.items():
            publish(strategy, self, f"PriorEWC/{name}", value.item())
        self._to_publish = {}

    def after_training_exp(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Compute the Fisher and update the posterior."""
        parameters = dict(strategy.model.named_parameters())
        self.posterior.align(parameters)
        active = active_elements(strategy.model, strategy.experience)
        dataset = strategy.experience.dataset.eval()

        start = time.perf_counter()
        rows = self._fisher_rows(len(dataset))
        fisher = diagonal_fisher(
            strategy.model,
            self._batches(strategy, dataset, rows, kwargs.get("num_workers", 0)),
            likelihood=self._likelihood,
            kind=self.fisher,
            generator=self.generator,
        )
        publish(strategy, self, "PriorEWC/FisherSeconds", time.perf_counter() - start)
        n_used = len(dataset) if rows is None else len(rows)
        publish(strategy, self, "PriorEWC/FisherSamples", float(n_used))
        self._publish_distribution(strategy, "Fisher", _select(fisher, active))
        self.posterior.update(parameters, fisher, len(dataset), active, self.gamma)
        log_precision = _select(self.posterior.precision, active).log()
        self._publish_distribution(strategy, "LogPrecision", log_precision)
        self._parameters, self._active = {}, {}
        self._prior_term = self._ewc_term = Quadratic({}, {})

    def _take_in(self, strategy: SupervisedTemplate) -> None:
        self._parameters = dict(strategy.model.named_parameters())
        self.posterior.align(self._parameters)
        self._active = active_elements(strategy.model, strategy.experience)
        # Heads of other tasks lie at their posterior mean. As long as nothing moves them they
        # must not get gradients, not even zeros: an optimizer's momentum would move them.
        self._dormant = {
            name
            for name, mask in self._active.items()
            if not mask.any() and torch.equal(self._parameters[name], self.posterior.mean[name])
        }
        self._n_samples = len(strategy.experience.dataset)
        self._strengths = None
        self._is_outdated = False

    def _make_terms(self, scale: float) -> None:
        """Prior and EWC as they enter the loss, made anew when their strengths change."""
        strengths = scale, scale * self.ewc_lambda
        if strengths != self._strengths:
            self._prior_term = self.posterior.prior_term(self._active, strengths[0])
            self._ewc_term = self.posterior.ewc_term(strengths[1], skip=self._dormant)
            self._strengths = strengths

    def _fisher_rows(self, n_samples: int) -> Tensor | None:
        """Numbers of the samples to take; None for all."""
        if self.n_fisher is None or self.n_fisher >= n_samples:
            return None
        with torch.random.fork_rng(devices=[]):  # leave the training's random numbers alone
            device = "cpu" if self.generator is None else self.generator.device
            order = torch.randperm(n_samples, generator=self.generator, device=device)
        return order[: self.n_fisher]

    def _batches(
        self, strategy: SupervisedTemplate, dataset: Any, rows: Tensor | None, num_workers: int
    ) -> Iterator[list[Tensor]]:
        batches = batches_in_order(strategy, dataset, rows, num_workers)
        multi_task = is_multi_task_module(strategy.model)
        for batch in batches:
            yield [batch[0], batch[1], batch[-1]] if multi_task else [batch[0], batch[1]]

    def _publish_distribution(
        self, strategy: SupervisedTemplate, name: str, values: Tensor
    ) -> None:
        finite = values[values.isfinite()]
        if len(finite) == 0:
            warnings.warn(
                f"{name} of the {len(values)} active elements has no finite value, so its "
                "distribution is not published",
                stacklevel=2,
            )
            return
        publish(strategy, self, f"PriorEWC/{name}Min", finite.min().item())
        publish(strategy, self, f"PriorEWC/{name}Max", finite.max().item())
        publish(strategy, self, f"PriorEWC/{name}", Histogram(finite))


def _select(tensors: Mapping[str, Tensor], active: Mapping[str, Tensor]) -> Tensor:
    """The active elements of all tensors, in one vector."""
    return torch.cat([tensors[name][mask] for name, mask in active.items()])
