"""Continual learning with hypernetworks, as a strategy for Avalanche."""

from __future__ import annotations

from typing import Any

from avalanche.training.templates import SupervisedTemplate
from avalanche.training.utils import _at_task_boundary
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_hnet.core.common.buffers_before import BuffersBefore
from avalanche_hnet.core.common.exchange import LatestUpdate
from avalanche_hnet.core.common.gradients import add_gradients
from avalanche_hnet.core.common.likelihoods import Likelihood, likelihood_of, resolve_likelihood
from avalanche_hnet.core.common.logits import logits_of
from avalanche_hnet.core.common.optimizers import parameters_of
from avalanche_hnet.core.common.processes import agree_on, average, take_first
from avalanche_hnet.core.regularizers import EWC, Experience, Regularizer
from avalanche_hnet.data.experiences import identity_of, labels_of, whole
from avalanche_hnet.data.loader import InMemoryLoader
from avalanche_hnet.models.hyper_model import HyperModel
from avalanche_hnet.plugins.checkpointing.kinds import register_checkpoint_state
from avalanche_hnet.plugins.clip_gradient import ClipGradientPlugin, clippings_of
from avalanche_hnet.plugins.eval_targets import check_eval_targets
from avalanche_hnet.plugins.finite_loss import logs_now, looks_at_loss
from avalanche_hnet.plugins.in_memory import InMemoryPlugin
from avalanche_hnet.plugins.small_batches import refuse_small_batches
from avalanche_hnet.strategies import requirements
from avalanche_hnet.strategies.any_batches import AnyBatches
from avalanche_hnet.strategies.experience_fisher import ExperienceFisher
from avalanche_hnet.strategies.from_scratch import start_from_scratch
from avalanche_hnet.strategies.goes_on import GoesOn
from avalanche_hnet.strategies.hypernet_log import (
    gradient_norm,
    publish_movement,
    publish_statistics,
    statistics,
)
from avalanche_hnet.strategies.hypernet_state import (
    ATTRIBUTES,
    load_strategy_state,
    strategy_state,
)
from avalanche_hnet.strategies.hypernet_step import (
    look_ahead,
    penalty_ahead,
    task_gradients,
    weight_prior,
)
from avalanche_hnet.strategies.online_pieces import PieceCounter
from avalanche_hnet.strategies.optimizers import (
    MakeOptimizer,
    hand_over_theta,
    optimizer_of_own,
)
from avalanche_hnet.strategies.roles import Roles, roles_of, trained_modules
from avalanche_hnet.strategies.shared_samples import SharedSamples
from avalanche_hnet.strategies.weight_movement import WeightMovement


class HypernetTemplate(AnyBatches, SharedSamples, GoesOn, SupervisedTemplate):
    """Trains a :class:`HyperModel` on one task after the other.

    Each iteration (von Oswald et al. 2020, arXiv 1906.00695, section 2):

    1. the gradient of the task's loss, with respect to θ (all that tasks share) and to the
       embeddings and other parameters of the experience's own tasks;
    2. Δθ, the step that θ's optimizer would take along it;
    3. the gradient of the regulariser, which may look ahead to θ + Δθ;
    4. a step of θ along the sum of both, and one of the experience's own parameters, which see the
       task's loss only. Those of earlier tasks are constant.

    Without a regulariser this is fine-tuning. What plugins add to the loss before the backward
    pass belongs to the task's loss; in ``after_backward`` and ``before_update`` they find θ's full
    gradient. A task that comes back is not regularised against itself.

    Published to the evaluator under ``Hypernet/``, every ``log_every`` iterations: ``TaskLoss``
    (with ``Prior``, its part, if there is a prior), ``Regularizer`` and their sum ``Loss``; the
    norms ``StepNorm`` of Δθ, ``GradientNorm`` of θ's full gradient and
    ``RegularizerGradientNorm``, and ``RegularizerStepCosine`` between the regulariser's gradient
    and Δθ (where there is one). After each experience, for each task learned before or in it,
    ``WeightsMoved/Task000``: the distance of its generated weights from what they were when it was
    learned, relative to their norm (of large networks, estimated from 16,384 weights; of the first
    32 tasks). Avalanche's
    own loss metrics show the task's loss.

    Args:
        model: the :class:`HyperModel`.
        optimizer: of θ. Parameters of single tasks are taken out of it.
        regularizer: protects earlier tasks; None: no protection.
        embedding_optimizer: makes the optimizer of an experience's own embeddings from its
            parameters. By default it is of θ's class and follows θ's learning rate. Each
            experience gets a new one.
        prior_variance: σ² of a prior N(0, σ² I) over the generated weights w of the experience's
            tasks. With N samples it adds ‖w‖² / (2σ²N) to the mean negative log-likelihood, as in
            :class:`PriorEWCPlugin`, but over all of w: with ``multi_head`` and without
            ``reuse_units``, other tasks' output units included. None: no prior.
        clip_grad_norm: largest norm of the gradient of the task's loss, and again of its sum with
            the regulariser's; short for a :class:`ClipGradientPlugin` as the last plugin.
        train_from_scratch: start each experience from the initial weights.
        likelihood: for the prior, and for Fisher values that the regulariser may need; by default
            read off the criterion, as in :class:`PriorEWCPlugin`.
        log_every: iterations between two published losses.
        in_memory: serve the data from memory, by an :class:`InMemoryPlugin`. Turn it off for random
            transforms, which the plugin refuses, and for data that do not fit; for another memory
            limit put one among the plugins.
        **options: the other arguments of Avalanche's ``SupervisedTemplate``.

    Attributes:
        embedding_optimizer: the optimizer of the present experience's own parameters.
        movement: the generated weights of each task when it was learned, for ``WeightsMoved``;
            to go on from a saved state, load its ``state_dict`` with the model's.

    Raises:
        TypeError, ValueError: if an argument is out of its range or contradicts another. At the
            start of an experience: if it is empty, or its targets do not fit the outputs. While
        training: if the loss is not finite.
    """

    optimized_param_id: dict[str, nn.Parameter] | None

    def __init__(
        self,
        *,
        model: HyperModel,
        optimizer: Optimizer,
        regularizer: Regularizer | None = None,
        embedding_optimizer: MakeOptimizer | None = None,
        prior_variance: float | None = None,
        clip_grad_norm: float | None = None,
        train_from_scratch: bool = False,
        likelihood: Likelihood | None = None,
        log_every: int = 50,
        in_memory: bool = True,
        **options: Any,
    ) -> None:
        requirements.check_arguments(
            model, regularizer, prior_variance, clip_grad_norm, train_from_scratch, log_every
        )
        plugins = [*(options.pop("plugins", None) or ())]
        requirements.check_plugins(plugins, in_memory, clip_grad_norm)
        requirements.check_optimizers(optimizer, embedding_optimizer, regularizer)
        requirements.check_likelihood(likelihood)
        if clip_grad_norm is not None:
            plugins.append(ClipGradientPlugin(norm=clip_grad_norm))
        super().__init__(model=model, optimizer=optimizer, plugins=plugins, **options)
        if in_memory and not any(isinstance(p, InMemoryPlugin) for p in self.plugins):
            self.plugins.insert(0, InMemoryPlugin())
        self.regularizer = regularizer
        self.prior_variance = prior_variance
        self.train_from_scratch = train_from_scratch
        self.likelihood = likelihood
        self.log_every = log_every
        self.movement = WeightMovement()
        self.latest_update: LatestUpdate = LatestUpdate()
        self._make_embedding_optimizer = embedding_optimizer
        initial = model.named_parameters() if train_from_scratch else ()
        self._initial = {name: parameter.detach().clone() for name, parameter in initial}
        self._pieces = PieceCounter()
        self._buffers = BuffersBefore()
        # Of the present experience:
        self.embedding_optimizer: Optimizer | None = None
        self._roles = Roles()
        self._resolved_likelihood: Likelihood | None = None
        # Of the present iteration:
        self._generated: dict[int, Tensor] = {}
        self._prior: Tensor | None = None
        self._to_publish: dict[str, Tensor] = {}

    def make_optimizer(self, reset_optimizer_state: bool = False, **kwargs: Any) -> None:
        """Give θ's optimizer all that tasks share, and the experience's own parameters a new one.

        Called by Avalanche before each experience.
        """
        self._roles = roles_of(self.model, labels_of(self.experience), self.regularizer)
        self.optimized_param_id = hand_over_theta(
            self.optimizer, self._roles, self.optimized_param_id, reset_state=reset_optimizer_state
        )
        if self._roles.own:
            self.embedding_optimizer = optimizer_of_own(
                [*self._roles.own], self.optimizer, self._make_embedding_optimizer
            )

    def forward(self) -> Any:
        """Outputs of the mini-batch; the prior needs the weights that they are made with."""
        if not self.is_training:
            return super().forward()
        if self.clock.train_exp_iterations == 0:
            self._buffers.watch(trained_modules(self.model, labels_of(self.experience)))
        if looks_at_loss(self, self.log_every):
            self._buffers.remember()
        loader, labels = self.dataloader, self.mb_task_id
        known = loader.only_task(labels) if isinstance(loader, InMemoryLoader) else None
        if self.prior_variance is not None:
            self._generated = self.model.generate(labels_of(self.experience))
        labels = labels if known is None else known
        return self.model(self.mb_x, labels, weights=self._generated)

    def criterion(self) -> Tensor:
        """The loss with the prior, after a check of the targets at the start of an experience."""
        if self.is_training and self.clock.train_exp_iterations == 0:
            with self._buffers.put_back_on_error():
                requirements.check_targets(self, self._resolved_likelihood)
        if not self.is_training:
            check_eval_targets(self)
        loss: Tensor = super().criterion()
        if self.prior_variance is None or not self.is_training:
            return loss
        n_samples = len(whole(self.experience).dataset)
        self._prior = weight_prior(
            self._generated.values(), self.prior_variance, n_samples, self._criterion_scale()
        )
        return loss + self._prior

    def backward(self) -> None:
        """Gradients of the task's loss and, after a look ahead, of the regulariser."""
        theta, roles = parameters_of(self.optimizer), self._roles
        lookahead = None if self.regularizer is None else self.regularizer.lookahead
        active = self.regularizer
        if active is None or not active.is_active:
            active = None
        differentiable = active is not None and active.differentiable_lookahead
        logs = logs_now(self, self.log_every)

        # Steps 1 to 3 of the class's docstring; the fourth is optimizer_step.
        if looks_at_loss(self, self.log_every):
            with self._buffers.put_back_on_error():
                requirements.check_task_loss(self)
        gradients = task_gradients(
            self.loss, self.model, theta, roles.previous, clippings_of(self), differentiable
        )
        step, penalty = {}, None
        if logs or (active is not None and lookahead is not None):
            step = look_ahead(self.optimizer, gradients, lookahead, differentiable)
        if active is not None:
            scale = self._criterion_scale() if active.is_log_prior else 1.0
            penalty = penalty_ahead(active, roles.regularized, step, scale)
            if looks_at_loss(self, self.log_every):
                with self._buffers.put_back_on_error():
                    requirements.check_penalty(self, penalty)
            add_gradients(roles.regularized, penalty.gradients)
        if logs:
            self._to_publish = statistics(self.loss, self._prior, step, roles.regularized, penalty)

    def optimizer_step(self) -> None:
        """A step of the experience's own parameters, and one of θ."""
        assert self.embedding_optimizer is not None
        if self._to_publish:  # now that plugins have clipped or projected it
            self._to_publish["GradientNorm"] = gradient_norm(parameters_of(self.optimizer))
        if self._make_embedding_optimizer is None:
            for group in self.embedding_optimizer.param_groups:
                group["lr"] = self.optimizer.param_groups[0]["lr"]
        self.embedding_optimizer.step()
        super().optimizer_step()

    def check_model_and_optimizer(self, reset_optimizer_state: bool = False, **kwargs: Any) -> None:
        """Adapt model and optimizers to the experience, and tell the regulariser of it."""
        super().check_model_and_optimizer(
            reset_optimizer_state or self.train_from_scratch, **kwargs
        )
        if not _at_task_boundary(self.experience, before=True):
            return
        if self.train_from_scratch:
            theta, initial = self._roles.theta, self._initial
            start_from_scratch(self.model, theta, initial, labels_of(self.experience))
        take_first([*self.model.parameters(), *self.model.buffers()])
        if self.regularizer is not None:
            _begin_protection(self, self.regularizer)

    def _criterion_scale(self) -> float:
        """How many times the mean negative log-likelihood the criterion is."""
        assert self._resolved_likelihood is not None
        outputs = logits_of(self.mb_output)
        scale = self._resolved_likelihood.criterion_scale(self._criterion, outputs, self.mb_y)
        return average(scale, like=outputs)

    def _before_training_exp(self, **kwargs: Any) -> None:
        requirements.check_experience(self.experience)
        refuse_small_batches(self)
        self.latest_update.undo(identity_of(whole(self.experience)))
        needs_fisher = self.regularizer is not None and self.regularizer.needs_fisher
        if needs_fisher or self.prior_variance is not None or self.likelihood is not None:
            self._resolved_likelihood = resolve_likelihood(self.likelihood, self._criterion)
        else:
            self._resolved_likelihood = likelihood_of(self._criterion)
        super()._before_training_exp(**kwargs)

    def _before_training_iteration(self, **kwargs: Any) -> None:
        for parameter in self._roles.outside_theta:  # θ's optimizer sees to the others
            parameter.grad = None
        super()._before_training_iteration(**kwargs)

    def _after_training_iteration(self, **kwargs: Any) -> None:
        publish_statistics(self, self._to_publish)
        self._to_publish, self._generated = {}, {}
        super()._after_training_iteration(**kwargs)

    def _after_training_exp(self, **kwargs: Any) -> None:
        if self._pieces.is_over_after(self.experience):
            agree_on(self.model)
            _finish_experience(self, self._resolved_likelihood)
        super()._after_training_exp(**kwargs)


def _begin_protection(strategy: HypernetTemplate, regularizer: Regularizer) -> None:
    model, labels = strategy.model, labels_of(strategy.experience)
    earlier = [label for label in model.trained_task_labels if label not in labels]
    theta = model.hypernetwork.shared_parameters().values()
    if any(p.requires_grad for p in theta):  # otherwise there is nothing to know
        requirements.check_knowledge(regularizer, earlier)
    if not earlier and strategy.clock.train_exp_counter:
        requirements.warn_of_no_protection(regularizer, labels)
    regularizer.before_experience(
        model.hypernetwork,
        Experience(
            protected=tuple(model.task_number(label) for label in earlier),
            n_samples=len(whole(strategy.experience).dataset),
            owners=model.weight_owners(),
        ),
    )


def _finish_experience(strategy: HypernetTemplate, likelihood: Likelihood | None) -> None:
    model, experience = strategy.model, strategy.experience
    tasks = tuple(model.task_number(label) for label in labels_of(experience))
    if (regularizer := strategy.regularizer) is not None:
        source = ExperienceFisher(strategy, model, likelihood)
        owners = [regularizer, *([regularizer.posterior] if isinstance(regularizer, EWC) else [])]
        strategy.latest_update.remember(identity_of(whole(experience)), *owners)
        regularizer.after_experience(source, tasks)
    strategy.movement.remember(model.hypernetwork, tasks)
    publish_movement(strategy, strategy.movement.distances(model.hypernetwork))


register_checkpoint_state(
    HypernetTemplate, save=strategy_state, load=load_strategy_state, skip=ATTRIBUTES
)
