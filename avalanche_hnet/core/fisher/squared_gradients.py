"""Squared per-sample gradients of any module, by the cheapest method that gets them right."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Set
from functools import partial
from typing import Protocol

from torch import Tensor, nn

from avalanche_hnet.core.common.samples import Samples
from avalanche_hnet.core.fisher.alignment import active_rows, random_factor
from avalanche_hnet.core.fisher.batch_statistics import refuse_batch_statistics
from avalanche_hnet.core.fisher.by_loop import ByLoop
from avalanche_hnet.core.fisher.by_rule import ByRule, NotDifferentiableError
from avalanche_hnet.core.fisher.by_vmap import ByVmap
from avalanche_hnet.core.fisher.choice import (
    Choice,
    choose_again,
    disagreeing,
    one_by_one,
    start,
)
from avalanche_hnet.core.fisher.complex_parameters import refuse_complex_parameters
from avalanche_hnet.core.fisher.layer_rules import FisherRule, layers_with_rules
from avalanche_hnet.core.fisher.methods import ByName, at_least_single
from avalanche_hnet.core.fisher.one_task import OneTask
from avalanche_hnet.core.fisher.recording import Recording, record
from avalanche_hnet.core.fisher.soundness import unsound
from avalanche_hnet.core.fisher.trial import N_TRIAL, refuse_mixed_rows


class Squares(Protocol):
    """A function from c, of the outputs' shape, to Σ_n (J_nᵀ c_n)² by name."""

    def __call__(
        self, factor: Tensor, instead: Mapping[str, FisherRule] | None = None, /
    ) -> ByName:
        """The squares.

        Args:
            factor: c.
            instead: rules by the names of layers, called once in place of those that were tried,
                for what they do with the layer's inputs and gradients.
        """


class SquaredGradients:
    """Σ_n (J_nᵀ c_n)² for the samples n of a batch, J_n the Jacobian of the outputs of sample n.

    Each parameter goes by the first of these that gets it right: the rule of its layer (one
    backward pass for the batch), ``vmap(grad)``, and one sample at a time. A rule is tried against
    single samples when its layer first has gradients, and holds for a batch only if the samples
    are in dimension 0 of its layer's one call (:func:`unsound`). So tied weights, layers called
    twice, weights used outside their layer, tokens in dimension 0 and wrong rules cost time, but
    never correctness.

    Args:
        model: in evaluation mode; called with ``(x)`` or, if ``labels`` are given, with
            ``(x, labels)``.
        parameters: those whose gradients are wanted, by name.
        x: the first batch, samples in dimension 0.
        labels: task labels of ``x``, one and the same for all samples: (B,), or one number with
            which the model is called then, or None.
        rules: of layers, by name; by default those of :func:`register_fisher_rule`.

    Attributes:
        choice: which parameters go by which method, as far as the batches so far have shown.

    Raises:
        ValueError: if the output for a sample depends on the other samples of its batch.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        x: Tensor | Samples,
        labels: Tensor | int | None,
        rules: Mapping[str, FisherRule] | None = None,
    ) -> None:
        refuse_complex_parameters(model)
        label = labels[:1] if isinstance(labels, Tensor) else labels
        task = OneTask(model, parameters, label)
        refuse_batch_statistics(task.layers)
        self._rules = layers_with_rules(task.layers) if rules is None else rules
        first = start(task, self._rules, x)
        self._task, self._dtype = first.task, first.dtype
        self._tried = set(first.tried)
        self._aligned = set(first.aligned)
        self._is_compared = False
        self.choice = _announced(first.choice)

    def forward(self, x: Tensor | Samples) -> tuple[Tensor, Squares]:
        """Outputs (B, …), and the function for their squared gradients."""
        outputs, recording = self._recorded(x)
        # No closure that calls itself: the graph would stay until garbage is collected.
        squares = partial(self._squares, x, outputs, recording)
        return at_least_single(_detached(outputs)), squares

    def forward_weighted(
        self, x: Tensor | Samples, weights: Mapping[str, Tensor]
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Outputs (B, …), and a function from c to Σ_i w_i (J_nᵀ c_n)_i² for each sample n, (B,).

        There are weights for all parameters.
        """
        outputs, recording = self._recorded(x)
        return _detached(outputs), partial(self._sums, x, weights, outputs, recording)

    def _squares(
        self,
        x: Tensor | Samples,
        outputs: Tensor,
        recording: Recording,
        factor: Tensor,
        instead: Mapping[str, FisherRule] | None = None,
    ) -> ByName:
        by_name: ByName = {}
        factor = factor.to(outputs.dtype)
        rules = {**self._rules, **(instead or {})}
        for method in self.choice.methods(self._task, rules, x, outputs, recording):
            try:
                by_name |= method.squares(factor)
            except Exception:  # a way through the model that vmap has not met before
                if not isinstance(method, ByVmap):
                    raise
                self.choice = _announced(one_by_one(self.choice))
                by_name |= ByLoop(method.names, self._task, x).squares(factor)
        return by_name

    def _sums(
        self,
        x: Tensor | Samples,
        weights: Mapping[str, Tensor],
        outputs: Tensor,
        recording: Recording,
        factor: Tensor,
    ) -> Tensor:
        total = at_least_single(factor.new_zeros(len(x)))
        for method in self.choice.methods(self._task, self._rules, x, outputs, recording):
            try:
                method.add_weighted(total, weights, factor)
            except NotDifferentiableError as error:
                self.choice = self._without_rules(error.names, x)
            except Exception:
                if not isinstance(method, ByVmap):
                    raise
                self.choice = _announced(one_by_one(self.choice))
            else:
                continue
            return self._sums(x, weights, outputs, recording, factor)
        return total.detach()

    def _recorded(self, x: Tensor | Samples) -> tuple[Tensor, Recording]:
        """The outputs with their layers' calls, after the choice has been made to fit them."""
        outputs, recording = record(self._task, x, self._rules)
        if not self._is_compared and len(x) > N_TRIAL:
            self._is_compared = True
            refuse_mixed_rows(self._task, x, outputs, recording)
        by_rule = self.choice.by_rule
        wrong = unsound(self._task, outputs, recording, by_rule, self._aligned)
        wrong |= self._tried_and_wrong(x, outputs, recording, by_rule - wrong)
        if wrong:
            self.choice = self._without_rules(wrong, x)
        return outputs, recording

    def _tried_and_wrong(
        self, x: Tensor | Samples, outputs: Tensor, recording: Recording, names: Set[str]
    ) -> set[str]:
        """Wrong rules among those that meet gradients in this batch for the first time."""
        untried = names - self._tried
        if not untried:
            return set()
        factor = random_factor(outputs)
        try:
            squares = ByRule(untried, self._rules, outputs, recording).squares(factor)
        except Exception:  # a rule meets inputs that it was not written for
            own = [self._task.of_layers([p]) & untried for p in self._task.layers_of(untried)]
            if len(own) == 1:
                return own[0]
            return set().union(*(self._tried_and_wrong(x, outputs, recording, n) for n in own))
        met = {name for name, square in squares.items() if square.any()}
        met |= self._unknown_to_rules(untried - squares.keys(), outputs, recording, factor)
        if not met:
            return met
        rows = active_rows(recording, outputs, factor, self._task.layers_of(met))
        wrong, active = disagreeing(self._task, self._rules, met, x[rows], self._dtype)
        self._tried |= active
        return wrong | (met - active)

    def _unknown_to_rules(
        self, names: Set[str], outputs: Tensor, recording: Recording, factor: Tensor
    ) -> set[str]:
        """Those that the outputs depend on by their layers' calls (``weight_orig`` of pruning)."""
        if names.isdisjoint(self._task.of_layers({call.prefix for call in recording.calls})):
            return set()
        prefixes = self._task.layers_of(names)
        reached = {c.prefix for c, _ in recording.output_gradients(outputs, factor, prefixes)}
        return self._task.of_layers(reached) & names

    def _without_rules(self, names: Iterable[str], x: Tensor | Samples) -> Choice:
        return _announced(choose_again(self.choice, names, self._task, x, self._dtype))


def _detached(outputs: Tensor) -> Tensor:
    """Without gradients, and not of inference mode."""
    detached = outputs.detach()
    return detached.clone() if detached.is_inference() else detached


def _announced(choice: Choice) -> Choice:
    """The choice itself, with a warning where it is slow."""
    if choice.by_loop:
        warnings.warn(
            f"squared gradients of {', '.join(choice.by_loop)} are computed one sample at a "
            "time, since neither a Fisher rule nor torch.func.vmap covers them",
            stacklevel=_outside(),
        )
    return choice


def _outside() -> int:
    """How many calls up the first is that is not of this package."""
    level, frame = 2, sys._getframe(2)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("avalanche_hnet."):
        level, frame = level + 1, frame.f_back
    return level
