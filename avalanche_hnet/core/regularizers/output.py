"""Regularisers of what a hypernetwork generates for earlier tasks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from avalanche_hnet.core.common.arguments import at_least, one_of
from avalanche_hnet.core.common.checksums import check_checksums, with_checksums
from avalanche_hnet.core.common.evaluation import evaluating
from avalanche_hnet.core.common.processes import share_generator
from avalanche_hnet.core.hypernetworks.network import HyperNetwork
from avalanche_hnet.core.hypernetworks.output_layer import Factors
from avalanche_hnet.core.regularizers.base import Experience, FisherSource, Penalty, Regularizer
from avalanche_hnet.core.regularizers.deviation import SHARED, Deviation, counts_for
from avalanche_hnet.core.regularizers.differentiate import gradients_or_none
from avalanche_hnet.core.regularizers.lookahead import Lookahead
from avalanche_hnet.core.regularizers.output_state import fisher_of_tasks, generator_state
from avalanche_hnet.core.regularizers.protection import Protection

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
        self._protection: Protection | None = None

    def before_experience(self, hypernetwork: HyperNetwork, experience: Experience) -> None:
        """Remember which tasks and weights are to be protected."""
        super().before_experience(hypernetwork, experience)
        share_generator(self._generator)
        if self.mask_heads and experience.owners is None:
            raise ValueError("mask_heads=True needs a model whose tasks have output units each")
        _require_sizes(hypernetwork.layout.n_weights, experience.owners, self._fisher)
        if self.needs_fisher and (unknown := set(experience.protected) - self._fisher.keys()):
            raise ValueError(
                f"fisher_weights=True, but the Fisher of the tasks {sorted(unknown)} is not known: "
                "they were learned without this regulariser; load its state_dict with the model's"
            )
        tasks, embedded = experience.protected, None
        if tasks and not self.train_previous_embeddings:
            with torch.no_grad():
                embedded = hypernetwork.embed(tasks)
        owners = experience.owners if self.mask_heads else None
        if owners is None:
            owners = torch.full((hypernetwork.layout.n_weights,), SHARED)
        self._protection = Protection(
            hypernetwork,
            tasks,
            owners.to(hypernetwork.output.weight.device),
            self._quadratic_is_wanted(hypernetwork, len(tasks)),
            embedded,
        )

    @property
    def is_active(self) -> bool:
        """Whether there are tasks to protect."""
        return self.beta > 0 and self._protection is not None and bool(self._protection.tasks)

    @property
    def _protected(self) -> Protection:
        if self._protection is None:
            raise RuntimeError("before_experience must be called first")
        return self._protection

    def penalty(
        self,
        parameters: Mapping[str, Tensor],
        change: Mapping[str, Tensor] | None = None,
        *,
        through_change: bool = False,
    ) -> Penalty:
        """The penalty at ``parameters`` and its gradient, see :meth:`Regularizer.penalty`."""
        trained = {n: p.detach().requires_grad_() for n, p in parameters.items()}
        moves = {n: c.detach().requires_grad_(through_change) for n, c in (change or {}).items()}
        moves_of_trained = {n: c for n, c in moves.items() if n in trained}
        wanted = [*trained.values(), *(moves.values() if through_change else ())]
        value, gradients = self._differentiated(wanted, trained, moves_of_trained)
        of_moves = gradients[len(trained) :]
        return Penalty(
            value,
            dict(zip(trained, gradients[: len(trained)], strict=True)),
            dict(zip(moves, of_moves, strict=True)) if through_change else {},
        )

    def _differentiated(
        self, wanted: Sequence[Tensor], parameters: Mapping[str, Tensor], change: Any
    ) -> tuple[Tensor, list[Tensor]]:
        """The penalty and its gradients with respect to ``wanted``.

        Args:
            wanted: leaves among ``parameters`` and ``change``.
            parameters: handed on to :meth:`_deviation`.
            change: handed on to :meth:`_deviation`.
        """
        protection = self._protected
        tasks = _drawn(protection.tasks, self.tasks_per_step, self._generator)
        value: Tensor | None = None
        gradients: list[Tensor | None] = [None] * len(wanted)
        # No dropout: what is protected are the weights that evaluation uses.
        with evaluating(protection.trunk), torch.enable_grad():
            for group in _groups(tasks, protection):
                part = self.beta / len(tasks) * self._sum_of_squares(group, parameters, change)
                of_part = gradients_or_none(part, wanted)
                gradients = [_plus(g, p) for g, p in zip(gradients, of_part, strict=True)]
                value = _plus(value, part.detach())
        assert value is not None
        return value, [
            torch.zeros_like(leaf) if gradient is None else gradient
            for leaf, gradient in zip(wanted, gradients, strict=True)
        ]

    def after_experience(self, source: FisherSource, tasks: tuple[int, ...]) -> None:
        """Compute the Fisher values of the tasks that were learned, if they are wanted."""
        if self.needs_fisher:
            of_tasks = {task: source.of_weights(task, self.n_fisher) for task in tasks}
            self._fisher = self._fisher | of_tasks

    def state_dict(self) -> dict[str, Any]:
        """Fisher values by task, and the state of the generator."""
        return with_checksums(
            {
                **super().state_dict(),
                "fisher": {str(task): values for task, values in self._fisher.items()},
                "generator": self._generator.get_state(),
            }
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the regulariser of :meth:`state_dict`."""
        super().load_state_dict(state)
        fisher = fisher_of_tasks(state["fisher"])
        generator = generator_state(state["generator"], self._generator.device)
        check_checksums(state)
        self._fisher = fisher
        self._generator.set_state(generator)

    @abstractmethod
    def _deviation(
        self, tasks: list[int], parameters: Mapping[str, Tensor], change: Any
    ) -> Deviation:
        """The deviation for protected tasks, differentiable.

        Args:
            tasks: their numbers.
            parameters: by name.
            change: Δ by name, or what a subclass's own :meth:`penalty` hands on instead.
        """

    def _deviating_weights(
        self, tasks: list[int], parameters: Mapping[str, Tensor], change: Any
    ) -> Tensor:
        """The same in the direct form, (T, W)."""
        deviation = self._deviation(tasks, parameters, change)
        return deviation.weights(self._protected.hypernetwork.layout.n_weights)

    def _quadratic_is_wanted(self, hypernetwork: HyperNetwork, n_protected: int) -> bool:
        if self.form != "auto" or self.needs_fisher:
            return self.form == "quadratic"
        n_tasks = min(n_protected, self.tasks_per_step or n_protected)
        if n_tasks * hypernetwork.layout.n_weights <= _SMALL:
            return False
        return 2 * n_tasks * hypernetwork.n_chunks > hypernetwork.output.in_features

    def _sum_of_squares(
        self, tasks: list[int], parameters: Mapping[str, Tensor], change: Any
    ) -> Tensor:
        protection = self._protected
        numbers = protection.rows_of(tasks, protection.numbers)
        if protection.quadratic:
            deviation = self._deviation(tasks, parameters, change)
            return deviation.sum_of_squares(protection.units, numbers)
        squares = self._deviating_weights(tasks, parameters, change).square()
        if self.mask_heads:
            squares = squares * counts_for(protection.owners, numbers)
        if self.needs_fisher:
            squares = squares * torch.stack([self._fisher[task].to(squares) for task in tasks])
        return squares.sum()


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


def _require_sizes(n_weights: int, owners: Tensor | None, fisher: Mapping[int, Tensor]) -> None:
    vectors = {} if owners is None else {"owners": owners}
    vectors |= {f"the Fisher values of task {task}": values for task, values in fisher.items()}
    for name, vector in vectors.items():
        if vector.shape != (n_weights,):
            raise ValueError(
                f"{name} must be a vector of {n_weights} numbers, one for each generated weight, "
                f"got shape {tuple(vector.shape)}"
            )


def _drawn(tasks: tuple[int, ...], n_tasks: int | None, generator: torch.Generator) -> list[int]:
    """So many of the tasks, drawn at random; all of them for None."""
    if n_tasks is None or n_tasks >= len(tasks):
        return list(tasks)
    order = torch.randperm(len(tasks), generator=generator, device=generator.device)
    return [tasks[i] for i in order[:n_tasks].tolist()]


def _groups(tasks: list[int], protection: Protection) -> Iterator[list[int]]:
    """All tasks at once in the quadratic form, as many as fit the budget in the direct one."""
    n_weights = protection.hypernetwork.layout.n_weights
    step = len(tasks) if protection.quadratic else max(1, _BUDGET // n_weights)
    for start in range(0, len(tasks), step):
        yield tasks[start : start + step]


def _plus(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    if total is None or part is None:
        return part if total is None else total
    return total + part
