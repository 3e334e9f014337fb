"""Which parameters go by which method: the cheapest one that gets them right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from avalanche_hnet.core.fisher.by_loop import ByLoop
from avalanche_hnet.core.fisher.by_rule import ByRule
from avalanche_hnet.core.fisher.by_vmap import ByVmap
from avalanche_hnet.core.fisher.layer_rules import FisherRule
from avalanche_hnet.core.fisher.methods import Method
from avalanche_hnet.core.fisher.one_task import OneTask
from avalanche_hnet.core.fisher.recording import Recording, record
from avalanche_hnet.core.fisher.trial import N_TRIAL, Trial, make_trial, refuse_mixed_samples


@dataclass(frozen=True)
class Choice:
    """Names of parameters by the method that gets their squared gradients.

    Attributes:
        by_rule: the rules of their layers.
        by_vmap: ``vmap(grad)``.
        by_loop: one sample at a time.
        is_plain: whether all that is needed are products of matrices, and no gradients of samples.
    """

    by_rule: frozenset[str]
    by_vmap: tuple[str, ...] = ()
    by_loop: tuple[str, ...] = ()
    is_plain: bool = False

    def methods(
        self,
        task: OneTask,
        rules: Mapping[str, FisherRule],
        x: Tensor,
        outputs: Tensor,
        recording: Recording,
    ) -> tuple[Method, ...]:
        """The methods for a batch ``x`` with its recorded outputs."""
        return (
            ByRule(self.by_rule, rules, outputs, recording),
            ByVmap(self.by_vmap, task, x),
            ByLoop(self.by_loop, task, x),
        )


def choose(task: OneTask, rules: Mapping[str, FisherRule], x: Tensor) -> Choice:
    """The choice for a model, by a trial on the first few of the inputs ``x``.

    Raises:
        ValueError: if the output for a sample depends on the other samples of its batch.
    """
    x = x[:N_TRIAL]
    singles = torch.cat([task.outputs(xi).detach() for xi in x.split(1)])
    outputs, recording = record(task, x, rules)
    refuse_mixed_samples(singles, outputs.detach())
    trial = make_trial(task, x, outputs.detach())
    covered = task.of_layers(rules) - task.of_layers(recording.repeated())
    squares = ByRule(covered, rules, outputs, recording).squares(trial.factor)
    # A layer with a rule that this task does not use (another head) is left to its rule.
    trusted = covered - trial.disagreeing(covered, squares)
    others = [name for name in task.parameters if name not in trusted]
    if others:
        return _without_rules(others, task, trial)
    return Choice(frozenset(trusted), is_plain=_has_plain_layers_only(recording))


def choose_again(choice: Choice, names: Iterable[str], task: OneTask, x: Tensor) -> Choice:
    """The choice when rules turn out to be wrong for parameters of these names."""
    x = x[:N_TRIAL]
    trial = make_trial(task, x, task.outputs(x))
    return _without_rules([*choice.by_vmap, *choice.by_loop, *sorted(names)], task, trial)


def _without_rules(names: Sequence[str], task: OneTask, trial: Trial) -> Choice:
    """These parameters by ``vmap``, or by single samples where that fails; others by rules."""
    try:
        squares = ByVmap(names, task, trial.x).squares(trial.factor)
        wrong = trial.disagreeing([n for n in names if n in trial.truth], squares)
    except Exception:  # what vmap cannot trace ends in errors of every kind
        wrong = set(names)
    return Choice(
        frozenset(task.parameters.keys() - set(names)),
        tuple(n for n in names if n not in wrong),
        tuple(n for n in names if n in wrong),
    )


def _has_plain_layers_only(recording: Recording) -> bool:
    return all(isinstance(c.layer, nn.Linear) and c.inputs.dim() == 2 for c in recording.calls)
