"""Continual learning with hypernetworks, as a strategy for Avalanche."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from avalanche.benchmarks import OnlineCLExperience
from avalanche.models.dynamic_optimizers import update_optimizer
from avalanche.training.templates import SupervisedTemplate
from avalanche.training.utils import _at_task_boundary
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_hnet.core.common.likelihoods import Likelihood, resolve_likelihood
from avalanche_hnet.core.regularizers import Experience, Penalty, Regularizer
from avalanche_hnet.core.regularizers.lookahead import fresh_optimizer, optimizer_step, sgd_step
from avalanche_hnet.data.experiences import labels_of, whole
from avalanche_hnet.data.loader import InMemoryLoader
from avalanche_hnet.models.hyper_model import HyperModel
from avalanche_hnet.plugins.finite_loss import refuse_loss
from avalanche_hnet.plugins.in_memory import InMemoryPlugin
from avalanche_hnet.plugins.publish import publish
from avalanche_hnet.strategies.experience_fisher import ExperienceFisher
from avalanche_hnet.strategies.requirements import (
    check_arguments,
    check_optimizers,
    check_plugins,
    check_targets,
)

Step = dict[Tensor, Tensor]


class HypernetTemplate(SupervisedTemplate):
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

    Published to the evaluator under ``Hypernet/``, each ``log_every`` iterations: ``TaskLoss``
    (with ``Prior``, its part, if there is a prior), ``Regularizer`` and their sum ``Loss``; the
    norms ``StepNorm`` of Δθ, ``GradientNorm`` of θ's full gradient and
    ``RegularizerGradientNorm``, and ``RegularizerStepCosine`` between the regulariser's gradient
    and Δθ (where there is one). After each experience, for each task learned before or in it,
    ``WeightsMoved/Task000``: the distance of its generated weights from what they were when it was
    learned, relative to their norm (of large networks, estimated from 16,384 weights). Avalanche's
    own loss metrics show the task's loss.

    Args:
        model: the :class:`HyperModel`.
        optimizer: of θ. Parameters of single tasks are taken out of it.
        regularizer: protects earlier tasks; None does not.
        embedding_optimizer: makes the optimizer of an experience's own embeddings from its
            parameters. By default it is of θ's class and follows θ's learning rate. Each
            experience gets a new one.
        prior_variance: σ² of a prior N(0, σ² I) over the generated weights w of the experience's
            tasks. With N samples it adds ‖w‖² / (2σ²N) to the mean negative log-likelihood, as in
            :class:`PriorEWCPlugin`, but over all of w: with ``multi_head`` and without
            ``reuse_units``, other tasks' output units included. None: no prior.
        clip_grad_norm: largest norm of the gradient of the task's loss, and again of its sum with
            the regulariser's.
        train_from_scratch: start each experience from the initial weights.
        likelihood: for the prior, and for Fisher values that the regulariser may need; by default
            read off the criterion, as in :class:`PriorEWCPlugin`.
        log_every: iterations between two published losses.
        in_memory: serve the data from memory, by an :class:`InMemoryPlugin`. Turn it off for random
            transforms, which that refuses, and for what does not fit; for another memory limit
            put one among the plugins.
        **options: the other arguments of Avalanche's ``SupervisedTemplate``.

    Attributes:
        embedding_optimizer: the optimizer of the present experience's own parameters.

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
        embedding_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
        prior_variance: float | None = None,
        clip_grad_norm: float | None = None,
        train_from_scratch: bool = False,
        likelihood: Likelihood | None = None,
        log_every: int = 50,
        in_memory: bool = True,
        **options: Any,
    ) -> None:
        check_arguments(
            model, regularizer, prior_variance, clip_grad_norm, train_from_scratch, log_every
        )
        check_plugins(options.get("plugins") or ())
        check_optimizers(optimizer, embedding_optimizer, regularizer)
        if likelihood is not None and not isinstance(likelihood, Likelihood):
            raise TypeError(f"likelihood must be a Likelihood, got {likelihood!r}")
        if not isinstance(in_memory, bool):
            raise TypeError(
                f"in_memory must be True or False, got {in_memory!r}; an InMemoryPlugin with other "
                "options belongs among the plugins"
            )
        super().__init__(model=model, optimizer=optimizer, **options)
        if in_memory and not any(isinstance(p, InMemoryPlugin) for p in self.plugins):
            self.plugins.insert(0, InMemoryPlugin())
        self.regularizer = regularizer
        self.prior_variance = prior_variance
        self.clip_grad_norm = clip_grad_norm
        self.train_from_scratch = train_from_scratch
        self.likelihood = likelihood
        self.log_every = log_every
        self._make_embedding_optimizer = embedding_optimizer
        self.embedding_optimizer: Optimizer | None = None
        self._resolved_likelihood: Likelihood | None = None
        self._generated: dict[int, Tensor] = {}
        self._prior: Tensor | None = None
        self._regularized: dict[str, nn.Parameter] = {}
        self._previous: list[nn.Parameter] = []
        self._not_theta: list[nn.Parameter] = []
        self._n_pieces = 0
        self._initial: dict[str, Tensor] = {}
        if train_from_scratch:
            self._initial = {n: p.detach().clone() for n, p in model.named_parameters()}
        self._to_publish: dict[str, Tensor] = {}

    def make_optimizer(self, reset_optimizer_state: bool = False, **kwargs: Any) -> None:
        """Give θ's optimizer all that tasks share, and the experience's own parameters a new one.

        Called by Avalanche before each experience.
        """
        own = self._own_parameters()
        present = set(self._theta())
        self.optimizer.param_groups[0]["params"] += [
            p for p in self._previous_embeddings() if p not in present
        ]
        self.optimized_param_id = update_optimizer(
            self.optimizer,
            self._shared_parameters(),
            self.optimized_param_id,
            # On its first call Avalanche asks for a reset, which would throw loaded state away.
            reset_state=reset_optimizer_state and self.optimized_param_id is not None,
            remove_params=True,
        )
        _complete_state(self.optimizer)
        if own:
            make = self._make_embedding_optimizer
            self.embedding_optimizer = (
                fresh_optimizer(self.optimizer, own) if make is None else make(own)
            )
            if not isinstance(self.embedding_optimizer, Optimizer):
                raise TypeError(
                    "embedding_optimizer must make an optimizer, but made "
                    f"{self.embedding_optimizer!r}"
                )

    def forward(self) -> Tensor:
        """Outputs of the mini-batch; the prior needs the weights that they are made with."""
        outputs: Tensor
        if not self.is_training:
            outputs = super().forward()
        else:
            loader, labels = self.dataloader, self.mb_task_id
            known = loader.only_task(labels) if isinstance(loader, InMemoryLoader) else None
            if self.prior_variance is not None:
                self._generated = self.model.generate(labels_of(self.experience))
            labels = labels if known is None else known
            outputs = self.model(self.mb_x, labels, weights=self._generated)
        return outputs

    def criterion(self) -> Tensor:
        """The loss with the prior, after a check of the targets at the start of an experience."""
        if self.is_training and self.clock.train_exp_iterations == 0:
            check_targets(self)
        loss: Tensor = super().criterion()
        if self.prior_variance is None or not self.is_training:
            return loss
        assert self._resolved_likelihood is not None
        scale = self._resolved_likelihood.criterion_scale(self._criterion, self.mb_output)
        scale /= 2 * self.prior_variance * len(whole(self.experience).dataset)
        self._prior = scale * torch.stack([*self._generated.values()]).square().sum()
        return loss + self._prior

    def backward(self) -> None:
        """Gradients of the task's loss and, after a look ahead, of the regulariser."""
        regularizer = self.regularizer
        if regularizer is not None and not regularizer.is_active:
            regularizer = None
        lookahead = None if regularizer is None else regularizer.lookahead
        differentiable = regularizer is not None and regularizer.differentiable_lookahead
        logs = self.clock.train_exp_iterations % self.log_every == 0
        # On a GPU the look at a loss would wait for it. It stays infinite or NaN, once it is.
        looks = logs or self.loss.is_cpu
        if looks and not self.loss.isfinite().all():
            refuse_loss(self, f"task's loss {self.loss.sum().item()}", "learning rate")
        gradients = self._task_gradients(differentiable)

        step: Step = {}
        if self.regularizer is not None and self.regularizer.lookahead == "sgd":
            step = sgd_step(self.optimizer, gradients, differentiable=differentiable)
        elif logs or lookahead == "optimizer":
            step = optimizer_step(self.optimizer, gradients, differentiable=differentiable)

        penalty: Penalty | None = None
        if regularizer is not None:
            change = {n: step[p] for n, p in self._regularized.items() if p in step}
            penalty = regularizer.penalty(
                self._regularized,
                None if lookahead is None else change,
                through_change=differentiable,
            )
            if regularizer.is_log_prior:
                assert self._resolved_likelihood is not None
                scale = self._resolved_likelihood.criterion_scale(self._criterion, self.mb_output)
                penalty = penalty.scaled(scale)
            if looks and not penalty.value.isfinite():
                refuse_loss(self, f"regulariser {penalty.value.item()}", "beta of the regulariser")
            penalty = penalty._replace(gradients=self._with_change(penalty, change))
            for name, gradient in penalty.gradients.items():
                _accumulate(self._regularized[name], gradient)
            _clip(self._theta(), self.clip_grad_norm)
        if logs:
            self._to_publish = self._statistics(step, penalty)

    def optimizer_step(self) -> None:
        """A step of the experience's own parameters, and one of θ."""
        own = self.embedding_optimizer
        assert own is not None
        if self._make_embedding_optimizer is None:
            for group in own.param_groups:
                group["lr"] = self.optimizer.param_groups[0]["lr"]
        own.step()
        super().optimizer_step()

    def _before_training_exp(self, **kwargs: Any) -> None:
        labels_of(self.experience)
        if len(self.experience.dataset) == 0:
            raise ValueError(
                f"experience {self.experience.current_experience} is empty; HypernetTemplate needs "
                "at least one sample"
            )
        needs_fisher = self.regularizer is not None and self.regularizer.needs_fisher
        if needs_fisher or self.prior_variance is not None:
            self._resolved_likelihood = resolve_likelihood(self.likelihood, self._criterion)
        super()._before_training_exp(**kwargs)

    def check_model_and_optimizer(self, reset_optimizer_state: bool = False, **kwargs: Any) -> None:
        """Adapt model and optimizers to the experience, and tell the regulariser of it."""
        super().check_model_and_optimizer(
            reset_optimizer_state or self.train_from_scratch, **kwargs
        )
        if not _at_task_boundary(self.experience, before=True):
            return
        if self.train_from_scratch:
            self._start_from_scratch()
        shared = self._shared_parameters()
        self._not_theta = [p for n, p in self.model.named_parameters() if n not in shared]
        if self.regularizer is None:
            return
        prefix = "hypernetwork."
        self._regularized = {
            name.removeprefix(prefix): parameter
            for name, parameter in shared.items()
            if name.startswith(prefix) and parameter.requires_grad
        }
        self._previous = self._previous_embeddings()
        model, labels = self.model, labels_of(self.experience)
        earlier = [label for label in model.trained_task_labels if label not in labels]
        if earlier and self.regularizer.is_active and self.regularizer.knows_nothing:
            raise ValueError(
                f"{type(self.regularizer).__name__} knows nothing of the tasks {earlier}: they "
                "were learned without it; load its state_dict with the model's"
            )
        if not earlier and self.clock.train_exp_counter and not self.regularizer.is_log_prior:
            warnings.warn(
                f"nothing is protected: all experiences so far have the task labels {labels}; give "
                "each its own (return_task_id=True in Avalanche's benchmarks)",
                stacklevel=2,
            )
        self.regularizer.before_experience(
            model.hypernetwork,
            Experience(
                protected=tuple(model.task_number(label) for label in earlier),
                n_samples=len(whole(self.experience).dataset),
                owners=model.weight_owners(),
            ),
        )

    def _before_training_iteration(self, **kwargs: Any) -> None:
        for parameter in self._not_theta:  # θ's optimizer sees to the others
            parameter.grad = None
        super()._before_training_iteration(**kwargs)

    def _after_training_iteration(self, **kwargs: Any) -> None:
        for name, value in self._to_publish.items():
            publish(self, self, f"Hypernet/{name}", value.item())
        self._to_publish = {}
        self._generated = {}
        super()._after_training_iteration(**kwargs)

    def _after_training_exp(self, **kwargs: Any) -> None:
        if self._was_last_piece():
            self._take_in_experience()
        super()._after_training_exp(**kwargs)

    def _take_in_experience(self) -> None:
        model = self.model
        tasks = tuple(model.task_number(label) for label in labels_of(self.experience))
        if self.regularizer is not None:
            source = ExperienceFisher(self, model, self._resolved_likelihood)
            self.regularizer.after_experience(source, tasks)
        model.movement.remember(model.hypernetwork, tasks)
        for task, distance in model.movement.distances(model.hypernetwork).items():
            name = f"Hypernet/WeightsMoved/Task{model.task_labels[task]:03}"
            publish(self, self, name, distance)

    def _was_last_piece(self) -> bool:
        """Whether the experience is over: streams in small pieces have many with one boundary."""
        experience = self.experience
        if not (isinstance(experience, OnlineCLExperience) and experience.access_task_boundaries):
            return True
        if experience.is_first_subexp:
            self._n_pieces = 0
        self._n_pieces += 1
        return bool(self._n_pieces == experience.sub_stream_length)

    def _own_parameters(self) -> list[nn.Parameter]:
        """Embeddings and other parameters of the experience's own tasks."""
        known = self.model.task_labels
        return [
            parameter
            for label in labels_of(self.experience)
            if label in known
            for parameter in self.model.task_parameters(label).values()
        ]

    def _shared_parameters(self) -> dict[str, nn.Parameter]:
        """What θ's optimizer trains, by name: all but the parameters of single tasks.

        Embeddings of earlier tasks belong to it if the regulariser trains them.
        """
        model, previous = self.model, set(self._previous_embeddings())
        of_tasks = {
            name
            for label in model.task_labels
            for name, parameter in model.task_parameters(label).items()
            if parameter not in previous
        }
        return {n: p for n, p in model.named_parameters() if n not in of_tasks}

    def _previous_embeddings(self) -> list[nn.Parameter]:
        """Those of the protected tasks, if they are trained."""
        model, current = self.model, labels_of(self.experience)
        regularizer = self.regularizer
        if regularizer is None or not (regularizer.train_previous_embeddings and regularizer.beta):
            return []
        return [
            parameter
            for label in model.trained_task_labels
            if label not in current
            for parameter in model.hypernetwork.task_parameters(model.task_number(label)).values()
        ]

    def _theta(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _task_gradients(self, differentiable: bool) -> Step | None:
        """Set the gradients of the task's loss; return them with their graph if differentiable."""
        gradients: Step | None = None
        if differentiable:
            parameters = [p for p in self.model.parameters() if p.requires_grad]
            found = torch.autograd.grad(
                self.loss.sum(), parameters, create_graph=True, allow_unused=True
            )
            for parameter, gradient in zip(parameters, found, strict=True):
                parameter.grad = None if gradient is None else gradient.detach().clone()
            theta = set(self._theta())
            gradients = {
                p: g for p, g in zip(parameters, found, strict=True) if g is not None and p in theta
            }
        else:
            self.loss.backward()
        for parameter in self._previous:
            # They have no gradient yet, but the optimizer remembers others and will move them.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
                if gradients is not None:
                    gradients[parameter] = parameter.grad
        factor = _clip(self.model.parameters(), self.clip_grad_norm)
        if gradients is None or factor == 1:
            return gradients
        return {parameter: factor * gradient for parameter, gradient in gradients.items()}

    def _with_change(self, penalty: Penalty, change: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The regulariser's gradient, its way through Δθ included."""
        names = [n for n in penalty.change_gradients if change[n].requires_grad]
        if not names:
            return penalty.gradients
        through = torch.autograd.grad(
            [change[n] for n in names],
            [*self._regularized.values()],
            [penalty.change_gradients[n] for n in names],
            allow_unused=True,
        )
        return {
            name: gradient if added is None else gradient + added
            for (name, gradient), added in zip(penalty.gradients.items(), through, strict=True)
        }

    def _start_from_scratch(self) -> None:
        """Put what tasks share back to what it was at construction, and the experience's own."""
        with torch.no_grad():
            for name, parameter in self._shared_parameters().items():
                parameter.copy_(self._initial[name])
        for label in labels_of(self.experience):
            self.model.reset_task(label)

    def _statistics(self, step: Step, penalty: Penalty | None) -> dict[str, Tensor]:
        """What is published of an iteration, before θ's step."""
        loss = self.loss.detach().sum()
        values = {
            "TaskLoss": loss,
            "Regularizer": torch.zeros_like(loss),
            "Loss": loss,
            "StepNorm": _norm(step.values()),
            "GradientNorm": _norm(p.grad for p in self._theta() if p.grad is not None),
        }
        if self._prior is not None:
            values["Prior"] = self._prior.detach()
        if penalty is not None:
            gradients = {self._regularized[n]: g for n, g in penalty.gradients.items()}
            product = sum((g * step[p]).sum() for p, g in gradients.items() if p in step)
            norm = _norm(gradients.values())
            own_step = _norm(d for p, d in step.items() if p in gradients)
            values |= {
                "Regularizer": penalty.value,
                "Loss": loss + penalty.value,
                "RegularizerGradientNorm": norm,
            }
            if norm > 0 and own_step > 0:
                values["RegularizerStepCosine"] = product / (norm * own_step)
        return values


def _accumulate(parameter: nn.Parameter, gradient: Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter).copy_(gradient)  # in the parameter's layout
    else:
        parameter.grad += gradient


def _complete_state(optimizer: Optimizer) -> None:
    """Give parameters without state what the optimizer's constructor gives, as Adagrad's does."""
    for group in optimizer.param_groups:
        without = [p for p in group["params"] if not optimizer.state.get(p)]
        if not without:
            continue
        try:
            initial = fresh_optimizer(optimizer, without).state
        except ValueError:  # a class of its own kind, which then has to do with an empty state
            continue
        optimizer.state.update(initial)


def _clip(parameters: Iterable[nn.Parameter], max_norm: float | None) -> float:
    """Scale gradients down to ``max_norm``; return the factor."""
    if max_norm is None:
        return 1.0
    norm = float(nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], max_norm))
    return min(1.0, max_norm / (norm + 1e-6))


def _norm(tensors: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of all tensors together."""
    norms = [t.detach().norm() for t in tensors]
    return torch.stack(norms).norm() if norms else torch.zeros(())
