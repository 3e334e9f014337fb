"""Online EWC with an explicit prior, as a plugin for Avalanche's strategies."""

from __future__ import annotations

import time
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, NoReturn

import torch
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor

from avalanche_hnet.core.common.arguments import (
    at_least,
    count_or_all,
    fraction,
    generator_or_none,
    not_negative,
    one_of,
)
from avalanche_hnet.core.common.evaluation import undisturbed
from avalanche_hnet.core.common.exchange import exchange
from avalanche_hnet.core.common.likelihoods import (
    Likelihood,
    check_first_batch,
    resolve_likelihood,
)
from avalanche_hnet.core.common.logits import logits_of
from avalanche_hnet.core.common.processes import agree_on, average, mean
from avalanche_hnet.core.fisher.batch_statistics import refuse_batch_statistics
from avalanche_hnet.core.fisher.complex_parameters import refuse_complex_parameters
from avalanche_hnet.core.fisher.kronecker_sums import WeightSharing
from avalanche_hnet.core.fisher.options import FisherKind
from avalanche_hnet.core.posterior.gaussian import PriorMean
from avalanche_hnet.core.posterior.structure import Structure, make_posterior
from avalanche_hnet.data.experiences import identity_of, stated_classes
from avalanche_hnet.models.active import active_elements
from avalanche_hnet.plugins.checkpointing.kinds import register_checkpoint_state
from avalanche_hnet.plugins.eval_targets import EvalTargetsPlugin
from avalanche_hnet.plugins.experience_penalty import ExperiencePenalty
from avalanche_hnet.plugins.finite_loss import logs_now, looks_at_loss, refuse_loss
from avalanche_hnet.plugins.fisher_batches import fisher_batches
from avalanche_hnet.plugins.forward_checks import refuse_other_forward
from avalanche_hnet.plugins.model_checks import ModelChecks
from avalanche_hnet.plugins.penalty_step import (
    PenaltyStep,
    names_with_implicit_steps,
    warn_of_layers,
    warn_of_others,
)
from avalanche_hnet.plugins.prior_ewc_checks import (
    refuse_criterion,
    refuse_loop,
    refuse_strategy,
    warn_of_prior,
)
from avalanche_hnet.plugins.prior_ewc_log import (
    publish_cost,
    publish_fisher,
    publish_losses,
    publish_posterior,
)
from avalanche_hnet.plugins.prior_ewc_state import load_plugin_state, plugin_state
from avalanche_hnet.plugins.processes import (
    add_gradient,
    kept_apart,
    model_of,
    model_with_shared_heads,
    wrap_grown,
)
from avalanche_hnet.plugins.shared_samples import SharedSamplesPlugin
from avalanche_hnet.plugins.small_batches import refuse_small_batches
from avalanche_hnet.plugins.undoing import UndoingPlugin


@dataclass(frozen=True, eq=False)
class _CurrentExperience:
    """What belongs to the experience that is being trained; replaced as it changes."""

    likelihood: Likelihood
    penalty: ExperiencePenalty | None = None
    """None: to be made in the next iteration, since the model may have changed."""
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    """To be published at the end of this iteration."""
    apart: Tensor | None = None
    """The penalties, if their gradient is to be added after the backward pass."""
    dormant: frozenset[str] | None = None
    """Heads that nothing had moved, if the experience goes on in the middle."""


class PriorEWCPlugin(  # type: ignore[call-arg]
    SharedSamplesPlugin, UndoingPlugin, EvalTargetsPlugin, supports_distributed=True
):
    """Prior-focused continual learning with a Gaussian posterior over the weights.

    While an experience of N samples is trained, the loss per sample is

        mean NLL + 1/N [1/(2σ²) Σ_{active, not known} (φᵢ − μ₀ᵢ)² + (λ/2) Σ_{known} Λᵢ (φᵢ − φ*ᵢ)²]

    and after it the precision Λ takes in N times the Fisher (:class:`GaussianPosterior` has the
    formulas). With ``structure="kronecker"`` the second sum is (φ − φ*)ᵀ Λ (φ − φ*), Λ with a
    Kronecker product for each layer (:class:`KroneckerPosterior`). The criterion is left as it is:
    where it is a multiple of the mean NLL, as the mean squared error is, the bracket is multiplied
    by the same factor.

    *Active* are the elements that the experience's loss depends on (:func:`active_elements`):
    of heads, those of its tasks and classes. Heads of other tasks feel neither the prior nor,
    unless replayed samples move them, the penalty.

    N counts the experience's own samples, and the Fisher is computed on them, in evaluation mode
    and with their evaluation transforms: replayed samples are in the posterior already.
    λ = γ = 1 is the Bayesian update.

    Published to the evaluator under ``PriorEWC/``, every ``log_every`` iterations: ``NLL`` (the
    value of the criterion), ``Prior``, ``EWC`` and their sum ``Loss``, as they enter the loss,
    without what other plugins add to it. After each experience: minimum, maximum and histogram of
    ``Fisher`` and ``LogPrecision`` (natural logarithm) over the active elements (a histogram has
    at most 65,536 of them), and ``FisherSeconds`` and ``FisherSamples``. With Kronecker products
    these two are diagonals, and ``LogEigenvalues`` are of the precisions of all layers.

    Args:
        ewc_lambda: λ ≥ 0, the weight of the penalty.
        prior_variance: σ² > 0.
        gamma: γ in [0, 1], how much of the precision from data is kept at each experience.
        fisher: ``"empirical"``, ``"sampled"`` or ``"exact"``, see :func:`diagonal_fisher`.
        n_fisher: number of samples for the Fisher, drawn at random; all by default.
        likelihood: by default read off the criterion: categorical for ``CrossEntropyLoss`` and
            ``NLLLoss``, with their weights, smoothing and ``ignore_index``; Gaussian with standard
            deviation 1 for ``MSELoss``; Bernoulli for ``BCEWithLogitsLoss``; likewise for their
            functions. Must be given for any other criterion, which is then taken for its mean
            negative logarithm.
        prior_mean: ``"zero"``, or ``"initial"``: the weights before their first experience.
        train_from_scratch: forget the posterior at every experience, so that each is trained
            with the prior alone. The weights are not reset.
        log_every: iterations between two published losses, from the first of each experience on.
        generator: draws the samples of ``n_fisher`` and the labels of ``fisher="sampled"``; by
            default they come from PyTorch's global state, which is then put back as it was.
        penalty_step: ``"gradient"``: the gradient of prior and EWC is part of the loss's, which
            diverges with SGD where η s > 2, for a penalty ½ s (φ − c)² and a step size η.
            ``"implicit"``: φ ← (φ + η s c)/(1 + η s) after the optimizer's step on the rest of the
            loss (Parikh & Boyd 2014, *Proximal algorithms*, section 4.2), stable for every λ. Both
            rest at the same weights. Where η is not known, the gradient is taken, with a warning.
            What is published, and ``strategy.loss``, do not depend on it. ``"auto"``: implicit for
            SGD and RAdam; gradient for optimizers that divide a gradient by its own size, like
            Adam, where it does not diverge and costs less. Kronecker products have implicit steps
            with SGD (and in RAdam's first, which are like SGD's) and ``rank=1`` only; there is a
            warning where SGD has to do without them.
        structure: ``"diagonal"``, or ``"kronecker"``: weights of a layer act together, see
            :class:`KroneckerPosterior`.
        rank: of ``"kronecker"``: how many products are kept for a layer; None for one for each
            experience.
        weight_sharing: of ``"kronecker"``: ``"expand"`` or ``"reduce"``, how layers are treated
            whose weights several positions share, see :func:`kronecker_factors`.
        max_rank: of ``"kronecker"``: a cheaper penalty, with so many leading eigenpairs of each
            factor at most, or as few as keep a share of its trace (a float in (0, 1)), and its
            exact diagonal; all by default. Implicit steps cost the same with it.

    Attributes:
        posterior: a :class:`GaussianPosterior` or :class:`KroneckerPosterior`; save and load it
            with its ``state_dict``.

    Raises:
        TypeError, ValueError: if an argument is out of its range. At the start of an experience:
            if it is empty, strategy, model or criterion do not go with a posterior, its first
            batch does not fit the likelihood, or the posterior is that of another model. While
            training: if the loss is not finite.
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
        penalty_step: PenaltyStep = "auto",
        structure: Structure = "diagonal",
        rank: int | None = 1,
        weight_sharing: WeightSharing = "expand",
        max_rank: int | float | None = None,
    ) -> None:
        super().__init__()
        not_negative(ewc_lambda=ewc_lambda)
        fraction(gamma=gamma)
        one_of(FisherKind, fisher=fisher)
        count_or_all(n_fisher=n_fisher)
        if likelihood is not None and not isinstance(likelihood, Likelihood):
            raise TypeError(f"likelihood must be a Likelihood, got {likelihood!r}")
        at_least(1, log_every=log_every)
        generator_or_none(generator=generator)
        one_of(PenaltyStep, penalty_step=penalty_step)
        self.ewc_lambda = ewc_lambda
        self.gamma = gamma
        self.fisher: FisherKind = fisher
        self.n_fisher = n_fisher
        self.likelihood = likelihood
        self.train_from_scratch = train_from_scratch
        self.log_every = log_every
        self.generator = generator
        self.penalty_step: PenaltyStep = penalty_step
        self.posterior = make_posterior(
            structure, prior_variance, prior_mean, rank, weight_sharing, max_rank
        )
        self._experience: _CurrentExperience | None = None
        self._has_warned_of_steps = self._has_warned_of_prior = self._has_warned_of_layers = False
        self._checks = ModelChecks()

    def before_train_dataset_adaptation(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Refuse what cannot be trained, before anything is changed."""
        self._latest.undo(identity_of(strategy.experience))
        refuse_strategy(self, strategy)
        refuse_small_batches(strategy)
        self._checks.before_adaptation(strategy, self.posterior)
        refuse_criterion(strategy._criterion)
        likelihood = resolve_likelihood(self.likelihood, strategy._criterion)
        self._experience = _CurrentExperience(likelihood)
        with undisturbed(model := model_of(strategy)):
            refuse_batch_statistics(dict(model.named_modules()))
            refuse_complex_parameters(model)

    def before_training_exp(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Take in the model as it is now, with the heads of this experience."""
        wrap_grown(strategy)
        # Only to refuse what does not fit: other plugins may still change the model.
        self._checks.before_training(strategy, self.posterior)
        _penalty_of(self, strategy)
        if self.train_from_scratch:
            self.posterior.forget()

    def after_eval(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """An evaluation in the middle of an experience may have grown the model."""
        if self._experience is not None:
            self._experience = replace(self._experience, penalty=None, dormant=None)

    def before_forward(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Remember running statistics, for a batch that is refused."""
        if self._required_experience().penalty is None:
            self._buffers.watch([strategy.model])
        if looks_at_loss(strategy, self.log_every):
            self._buffers.remember()

    def after_forward(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Refuse a first batch that does not fit the likelihood."""
        if strategy.clock.train_exp_iterations == 0:
            with self._buffers.put_back_on_error():
                _check_first_batch(strategy, self._required_experience().likelihood)

    def before_backward(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Add the prior's and the earlier experiences' penalties to the loss."""
        with self._buffers.put_back_on_error():
            self._add_penalties(strategy)
        self._buffers.forget()

    def after_backward(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Penalise heads of other tasks once the loss (of replayed samples) moves them."""
        experience = self._required_experience()
        assert experience.penalty is not None  # made before the backward pass
        penalty = experience.penalty.after_backward()
        add_gradient(experience.apart, penalty.parameters.values())
        if penalty is not experience.penalty or experience.apart is not None:
            self._experience = replace(experience, penalty=penalty, apart=None)

    def before_update(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Refuse a loop whose loss the penalties have not been added to."""
        if self._required_experience().penalty is None:
            refuse_loop(strategy)

    def after_update(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Take the implicit steps of the penalties."""
        penalty = self._required_experience().penalty
        assert penalty is not None  # made before the backward pass
        penalty.after_step(strategy.optimizer)

    def after_training_iteration(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Publish the terms of the loss, every ``log_every`` iterations."""
        experience = self._required_experience()
        if strategy.clock.train_exp_iterations == 0 and not experience.losses:
            refuse_loop(strategy)  # it does not even call before_update
        if experience.losses:
            publish_losses(strategy, self, experience.losses)
            self._experience = replace(experience, losses={})

    def after_training_exp(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Compute the Fisher and update the posterior, unless nothing has been trained."""
        experience = self._required_experience()
        if strategy.clock.train_exp_iterations == 0:
            return
        model = model_with_shared_heads(strategy)
        agree_on(model)
        parameters = dict(model.named_parameters())
        self.posterior.align(parameters)
        active = active_elements(model, strategy.experience)
        start = time.perf_counter()
        workers = kwargs.get("num_workers", 0)
        batches, n_drawn = fisher_batches(strategy, self.n_fisher, self.generator, workers)
        fisher = self.posterior.fisher(
            model,
            batches,
            likelihood=experience.likelihood,
            kind=self.fisher,
            generator=self.generator,
        )
        publish_cost(strategy, self, time.perf_counter() - start, n_drawn)
        publish_fisher(strategy, self, fisher, active)
        updated = copy(self.posterior)
        updated.update(parameters, fisher, len(strategy.experience.dataset), active, self.gamma)
        updated.likelihood = experience.likelihood
        publish_posterior(strategy, self, updated, active)
        self._experience = replace(experience, penalty=None)  # and let go of the model
        self._checks.after_training(model, is_kept=not self.train_from_scratch)
        self._latest.remember(identity_of(strategy.experience), self.posterior)
        exchange(self.posterior, **vars(updated))  # at last, when nothing else can fail

    def _add_penalties(self, strategy: SupervisedTemplate) -> None:
        experience = self._required_experience()
        self._checks.before_backward(strategy)
        penalty = experience.penalty or _penalty_of(self, strategy)
        outputs = logits_of(strategy.mb_output)
        scale = experience.likelihood.criterion_scale(strategy._criterion, outputs, strategy.mb_y)
        scale = average(scale, like=outputs) / penalty.n_samples
        penalty = penalty.with_strengths(scale, scale * self.ewc_lambda, strategy.optimizer)
        if not self._has_warned_of_layers:
            self._has_warned_of_layers = warn_of_layers(
                self.penalty_step, strategy.optimizer, penalty.without_step
            )
        apart, prior, ewc = kept_apart(*penalty.values())
        total = strategy.loss + prior + ewc
        logs = logs_now(strategy, self.log_every)
        if looks_at_loss(strategy, self.log_every) and not isfinite(total.item()):
            _refuse_loss(strategy, penalty, prior, ewc)
        if not (self._has_warned_of_prior or strategy.clock.train_exp_iterations):
            self._has_warned_of_prior = warn_of_prior(prior.item(), strategy.loss.item())
        strategy.loss = total
        losses = _terms(strategy, prior, ewc) if logs else experience.losses
        if logs or penalty is not experience.penalty or apart is not None:
            self._experience = replace(experience, penalty=penalty, losses=losses, apart=apart)

    def _required_experience(self) -> _CurrentExperience:
        assert self._experience is not None  # an iteration belongs to an experience
        return self._experience


def _penalty_of(plugin: PriorEWCPlugin, strategy: SupervisedTemplate) -> ExperiencePenalty:
    """Take in the model as it is now."""
    model = model_with_shared_heads(strategy)
    parameters = dict(model.named_parameters())
    plugin.posterior.align(parameters)
    active = active_elements(model, strategy.experience)
    n_samples = len(strategy.experience.dataset)
    implicit = names_with_implicit_steps(plugin.penalty_step, strategy.optimizer, parameters)
    if plugin.penalty_step == "implicit" and not plugin._has_warned_of_steps:
        plugin._has_warned_of_steps = warn_of_others(strategy.optimizer, parameters, implicit)
    penalty = ExperiencePenalty.of(plugin.posterior, parameters, active, n_samples, implicit)
    dormant = plugin._required_experience().dormant
    return penalty if dormant is None else replace(penalty, dormant=dormant)


@torch.no_grad()
def _terms(strategy: SupervisedTemplate, prior: Tensor, ewc: Tensor) -> dict[str, Tensor]:
    nll = mean(strategy._criterion(strategy.mb_output, strategy.mb_y))
    return {"NLL": nll, "Prior": prior, "EWC": ewc, "Loss": nll + prior + ewc}


register_checkpoint_state(PriorEWCPlugin, save=plugin_state, load=load_plugin_state)


def _check_first_batch(strategy: SupervisedTemplate, likelihood: Likelihood) -> None:
    refuse_other_forward(strategy)
    classes = stated_classes(strategy.experience)
    outputs, targets = strategy.mb_output, strategy.mb_y
    check_first_batch(likelihood, strategy._criterion, outputs, targets, classes)


def _refuse_loss(
    strategy: SupervisedTemplate, penalty: ExperiencePenalty, prior: Tensor, ewc: Tensor
) -> NoReturn:
    parts = f"{strategy.loss.item()} before the penalties, prior {prior.item()}, EWC {ewc.item()}"
    remedy = "learning rate"
    if not penalty.implicit:
        remedy += ", or penalty_step='implicit',"
    elif penalty.without_step and getattr(penalty.posterior, "rank", 1) != 1:
        remedy += ", or rank=1, which has implicit steps,"
    refuse_loss(strategy, parts, remedy)
