"""Regularisers of what a hypernetwork generates for earlier tasks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from avalanche_hnet.core.common.arguments import at_least, one_of
from avalanche_hnet.core.common.evaluation import evaluating
from avalanche_hnet.core.hypernetworks.network import HyperNetwork
from avalanche_hnet.core.hypernetworks.output_layer import Factors
from avalanche_hnet.core.hypernetworks.trunk_inputs import Embedded
from avalanche_hnet.core.regularizers.base import Experience, FisherSource, Penalty, Regularizer
from avalanche_hnet.core.regularizers.deviation import SHARED, Deviation, UnitClasses, counts_for
from avalanche_hnet.core.regularizers.lookahead import Lookahead

Form = Literal["auto", "direct", "quadratic"]

# So few deviations cost nothing: there the direct form is faster, having less overhead.
_SMALL = 2**16
# The direct form holds at most so many generated weights at a time (4 MiB of float32).
_BUDGET = 2**20


class OutputRegularizer(Regularizer):
    """β/T Σ_j ‖ √F_j ⊙ m_j ⊙ d_j ‖², d_j the deviation (W,) of the weights generated for task j.

    The sum is over T earlier tasks; masks m_j and Fisher values F_j are left out unless asked for.
    Subclasses say what the deviation is. von Oswald et al. 2020 (arXiv 1906.00695), equation 2 and
    appendix; Fisher weights: their "importance weights".

    The sum of squares is evaluated in one of two forms, which agree to rounding: *direct*, forming
    the deviations of all tasks, or as the *quadratic* form of :mod:`.deviation`,
    whose cost and memory hardly depend on the number of tasks.

    Args:
        beta: strength β.
        lookahead: which change Δ of the parameters the deviation looks ahead to.
        differentiable_lookahead: differentiate through Δ, which makes second derivatives of the
            task's loss necessary.
        mask_heads: protect only the weights of each task's own output units (and those of the
            other layers).
        fisher_weights: weigh each deviation with the Fisher value of that weight, computed for
            each task when it has been learned. T × W values are kept.
        n_fisher: number of samples for the Fisher, drawn at random; all by default.
        tasks_per_step: regularise so many tasks, drawn at random in each step; all by default.
        form: ``"direct"``, ``"quadratic"``, or ``"auto"``, the one that should be faster.
        generator: draws the tasks of each step; by default one with a fixed seed.

    Raises:
        TypeError, ValueError: if an argument is out of its range or contradicts another.
    """

    def __init__(
        self,
        beta: float,
        *,
        lookahead: Lookahead | None,
        differentiable_lookahead: bool = False,
        mask_heads: bool = False,
        fisher_weights: bool = False,
        n_fisher: int | None = None,
        tasks_per_step: int | None = None,
        form: Form = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(beta)
        if lookahead is not None:
            one_of(Lookahead, lookahead=lookahead)
        one_of(Form, form=form)
        if tasks_per_step is not None:
            at_least(1, tasks_per_step=tasks_per_step)
        if n_fisher is not None:
            at_least(1, n_fisher=n_fisher)
            if not fisher_weights:
                raise ValueError(f"n_fisher={n_fisher} needs fisher_weights=True")
        if differentiable_lookahead and lookahead is None:
            raise ValueError(
                "differentiable_lookahead=True needs a lookahead of 'optimizer' or 'sgd', not "
                "lookahead=None"
            )
        if fisher_weights and form == "quadratic":
            raise ValueError(
                "fisher_weights=True does not go with form='quadratic': each weight has a factor "
                "of its own; leave form at 'auto'"
            )
        self.lookahead = lookahead
        self.differentiable_lookahead = differentiable_lookahead
        self.mask_heads = mask_heads
        self.needs_fisher = fisher_weights
        self.n_fisher = n_fisher
        self.tasks_per_step = tasks_per_step
        self.form: Form = form
        self._generator = generator or torch.Generator().manual_seed(0)
        self._fisher: dict[int, Tensor] = {}
        self._protected: tuple[int, ...] = ()

    def before_experience(self, hypernetwork: HyperNetwork, experience: Experience) -> None:
        """Remember which tasks and weights are to be protected."""
        super().before_experience(hypernetwork, experience)
        if self.mask_heads and experience.owners is None:
            raise ValueError("mask_heads=True needs a model whose tasks have output units each")
        n_weights = hypernetwork.layout.n_weights
        if experience.owners is not None and experience.owners.shape != (n_weights,):
            raise ValueError(
                f"owners must be a vector of {n_weights} numbers, one for each generated weight, "
                f"got shape {tuple(experience.owners.shape)}"
            )
        for task, values in self._fisher.items():
            if values.shape != (n_weights,):
                raise ValueError(
                    f"the Fisher values of task {task} must be a vector of {n_weights} numbers, "
                    f"one for each generated weight, got shape {tuple(values.shape)}"
                )
        if self.needs_fisher and (unknown := set(experience.protected) - self._fisher.keys()):
            raise ValueError(
                f"fisher_weights=True, but the Fisher of the tasks {sorted(unknown)} is not known: "
                "they were learned without this regulariser; load its state_dict with the model's"
            )
        self._protected = experience.protected
        weight = hypernetwork.output.weight
        owners = experience.owners if self.mask_heads else None
        if owners is None:
            owners = torch.full((hypernetwork.layout.n_weights,), SHARED)
        self._owners = owners.to(weight.device)
        self._numbers = torch.tensor(self._protected, device=weight.device)
        self._trunk = list(hypernetwork.trunk.modules())
        self._position = {task: index for index, task in enumerate(self._protected)}
        self._embedded: Embedded | None = None  # constant, unless embeddings are trained
        if self._protected and not self.train_previous_embeddings:
            with torch.no_grad():
                self._embedded = hypernetwork.embed(self._protected)
        self._units: UnitClasses | None = None

    @property
    def is_active(self) -> bool:
        """Whether there are tasks to protect."""
        return self.beta > 0 and bool(self._protected)

    def penalty(
        self,
        parameters: Mapping[str, Tensor],
        change: Mapping[str, Tensor] | None = None,
        *,
        through_change: bool = False,
    ) -> Penalty:
        """The penalty at ``parameters`` and its gradient, see :meth:`Regularizer.penalty`."""
        self._required_hypernetwork()
        own = {n: p.detach().requires_grad_() for n, p in parameters.items()}
        moved = {n: c.detach().requires_grad_(through_change) for n, c in (change or {}).items()}
        wanted = [*own.values(), *(moved.values() if through_change else ())]
        trained_change = {n: c for n, c in moved.items() if n in own}
        tasks = self._draw_tasks()
        value: Tensor | None = None
        total: list[Tensor | None] = [None] * len(wanted)
        # No dropout: what is protected are the weights that evaluation uses.
        with evaluating(self._trunk), torch.enable_grad():
            for group in self._groups(tasks):
                part = self.beta / len(tasks) * self._sum_of_squares(group, own, trained_change)
                gradients = torch.autograd.grad(part, wanted, allow_unused=True)
                total = [_plus(t, g) for t, g in zip(total, gradients, strict=True)]
                value = _plus(value, part.detach())
        assert value is not None
        found = [
            torch.zeros_like(p) if t is None else t for p, t in zip(wanted, total, strict=True)
        ]
        return Penalty(
            value,
            dict(zip(own, found, strict=False)),
            dict(zip(moved, found[len(own) :], strict=True)) if through_change else {},
        )

    def after_experience(self, source: FisherSource, tasks: tuple[int, ...]) -> None:
        """Compute the Fisher values of the tasks that were learned, if they are wanted."""
        if self.needs_fisher:
            for task in tasks:
                self._fisher[task] = source.of_weights(task, self.n_fisher)

    def state_dict(self) -> dict[str, Any]:
        """Fisher values by task, and the state of the generator."""
        return {
            **super().state_dict(),
            "fisher": {str(task): values for task, values in self._fisher.items()},
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the regulariser of :meth:`state_dict`."""
        super().load_state_dict(state)
        self._fisher = {int(task): values.clone() for task, values in state["fisher"].items()}
        self._generator.set_state(state["generator"].cpu())

    @abstractmethod
    def _deviation(
        self, tasks: list[int], parameters: Mapping[str, Tensor], change: Mapping[str, Tensor]
    ) -> Deviation:
        """The deviation at differentiable parameters and change."""

    def _deviating_weights(
        self, tasks: list[int], parameters: Mapping[str, Tensor], change: Mapping[str, Tensor]
    ) -> Tensor:
        """The same in the direct form, (T, W)."""
        deviation = self._deviation(tasks, parameters, change)
        return deviation.weights(self._required_hypernetwork().layout.n_weights)

    def _factors(self, tasks: list[int], parameters: Mapping[str, Tensor]) -> Factors:
        """Factors of the weights of protected tasks at differentiable parameters."""
        hypernetwork = self._required_hypernetwork()
        if self._embedded is None:
            return hypernetwork.factors(tasks, parameters)
        of_tasks, of_chunks = self._embedded
        embedded = Embedded(
            self._rows_of(tasks, of_tasks),
            None if of_chunks is None else self._rows_of(tasks, of_chunks),
        )
        return hypernetwork.factors_of(embedded, parameters)

    def _rows_of(self, tasks: list[int], of_all: Tensor) -> Tensor:
        """The rows of ``of_all`` (protected tasks, …) that belong to ``tasks``."""
        if len(tasks) == len(of_all):
            return of_all
        return of_all[[self._position[task] for task in tasks]]

    @property
    def _is_quadratic(self) -> bool:
        if self.form != "auto" or self.needs_fisher:
            return self.form == "quadratic"
        hypernetwork = self._required_hypernetwork()
        n_tasks = min(len(self._protected), self.tasks_per_step or len(self._protected))
        if n_tasks * hypernetwork.layout.n_weights <= _SMALL:
            return False
        return 2 * n_tasks * hypernetwork.n_chunks > hypernetwork.output.in_features

    def _sum_of_squares(
        self, tasks: list[int], parameters: Mapping[str, Tensor], change: Mapping[str, Tensor]
    ) -> Tensor:
        numbers = self._rows_of(tasks, self._numbers)
        if self._is_quadratic:
            if self._units is None:
                chunk_size = self._required_hypernetwork().chunk_size
                self._units = UnitClasses(self._owners, chunk_size)
            return self._deviation(tasks, parameters, change).sum_of_squares(self._units, numbers)
        squares = self._deviating_weights(tasks, parameters, change).square()
        if self.mask_heads:
            squares = squares * counts_for(self._owners, numbers)
        if self.needs_fisher:
            squares = squares * torch.stack([self._fisher[task].to(squares) for task in tasks])
        return squares.sum()

    def _draw_tasks(self) -> list[int]:
        n = len(self._protected)
        if self.tasks_per_step is None or self.tasks_per_step >= n:
            return list(self._protected)
        order = torch.randperm(n, generator=self._generator, device=self._generator.device)
        return [self._protected[i] for i in order[: self.tasks_per_step].tolist()]

    def _groups(self, tasks: list[int]) -> Iterator[list[int]]:
        """All tasks at once in the quadratic form, as many as fit the budget in the direct one."""
        n_weights = self._required_hypernetwork().layout.n_weights
        step = len(tasks) if self._is_quadratic else max(1, _BUDGET // n_weights)
        for start in range(0, len(tasks), step):
            yield tasks[start : start + step]


def moved_by(
    parameters: Mapping[str, Tensor], change: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """Parameters + change."""
    if not change:
        return parameters
    return {n: p + change[n] if n in change else p for n, p in parameters.items()}


def difference(new: Factors, old: Factors) -> Deviation:
    """Weights generated from ``new`` factors minus those from ``old`` ones.

    Differences are formed before any product, so that nothing cancels afterwards.
    """
    return Deviation(
        old.weight,
        new.weight - old.weight,
        new.bias - old.bias,
        new.hidden,
        new.hidden - old.hidden,
    )


def _plus(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    if total is None or part is None:
        return part if total is None else total
    return total + part
