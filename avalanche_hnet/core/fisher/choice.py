"""Which parameters go by which method: the cheapest one that gets them right."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from avalanche_hnet.core.common.samples import Samples, joined
from avalanche_hnet.core.fisher.by_loop import ByLoop
from avalanche_hnet.core.fisher.by_rule import ByRule
from avalanche_hnet.core.fisher.by_vmap import ByVmap
from avalanche_hnet.core.fisher.layer_rules import FisherRule
from avalanche_hnet.core.fisher.methods import Method
from avalanche_hnet.core.fisher.one_task import OneTask
from avalanche_hnet.core.fisher.precision import coarsest, converted, in_precision
from avalanche_hnet.core.fisher.recording import Recording
from avalanche_hnet.core.fisher.soundness import unsound
from avalanche_hnet.core.fisher.trial import (
    N_TRIAL,
    Trial,
    make_trial,
    refuse_mixed_samples,
)


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
        x: Tensor | Samples,
        outputs: Tensor,
        recording: Recording,
    ) -> list[Method]:
        """The methods for a batch ``x`` with its recorded outputs."""
        methods: list[Method] = []
        if self.by_rule:
            methods.append(ByRule(self.by_rule, rules, outputs, recording))
        if self.by_vmap:
            methods.append(ByVmap(self.by_vmap, task, x))
        if self.by_loop:
            methods.append(ByLoop(self.by_loop, task, x))
        return methods


@dataclass(frozen=True)
class Start:
    """What a trial on the first inputs says.

    Attributes:
        task: as given, in pairs if it has to be.
        choice: of methods.
        tried: names whose rules were tried on gradients other than zero.
        aligned: see :func:`unsound`.
        dtype: in which trials run.
    """

    task: OneTask
    choice: Choice
    tried: frozenset[str]
    aligned: frozenset[Hashable]
    dtype: torch.dtype


def start(task: OneTask, rules: Mapping[str, FisherRule], x: Tensor | Samples) -> Start:
    """The choice for a model, by a trial on the first few of the inputs ``x``.

    A layer with a rule that these do not use is left to its rule until it is tried.

    Raises:
        ValueError: if the output for a sample depends on the other samples of its batch.
    """
    x = x[:N_TRIAL]
    dtype = _trial_dtype(task, x)
    try:
        return _start(task, rules, x, dtype)
    except Exception:  # of every kind where a dimension is missing
        if _keeps_dimension(task, x):
            raise
        return _start(replace(task, in_pairs=True), rules, x, dtype)


def disagreeing(
    task: OneTask,
    rules: Mapping[str, FisherRule],
    names: Set[str],
    x: Tensor | Samples,
    dtype: torch.dtype,
) -> tuple[set[str], set[str]]:
    """Names whose rules are wrong for the inputs ``x``, and those that have gradients there."""
    with in_precision(task.layers.values(), dtype):
        trial = make_trial(task, rules, converted(x, dtype))
        return _wrong_rules(task, rules, names, trial), trial.active(names)


def choose_again(
    choice: Choice, names: Iterable[str], task: OneTask, x: Tensor | Samples, dtype: torch.dtype
) -> Choice:
    """The choice when rules turn out to be wrong for parameters of these names in a batch ``x``.

    Raises:
        ValueError: if the output for a sample depends on the other samples of its batch.
    """
    others = {*choice.by_vmap, *choice.by_loop, *names}
    with in_precision(task.layers.values(), dtype):
        x = converted(x, dtype)
        trial = make_trial(task, {}, x[:N_TRIAL])
        # A model may mix the samples of large batches only, of which a trial knows nothing.
        with torch.no_grad():
            together = task.outputs(x)[:N_TRIAL]
        refuse_mixed_samples(trial.singles[: len(together)], together, trial.dtype)
        return _without_rules([n for n in task.parameters if n in others], task, trial)


def one_by_one(choice: Choice) -> Choice:
    """The choice when ``vmap`` fails."""
    return replace(choice, by_vmap=(), by_loop=(*choice.by_vmap, *choice.by_loop))


def _start(
    task: OneTask, rules: Mapping[str, FisherRule], x: Tensor | Samples, dtype: torch.dtype
) -> Start:
    with in_precision(task.layers.values(), dtype):
        trial = make_trial(task, rules, converted(x, dtype))
        covered = trial.covered
        aligned: set[Hashable] = set()
        doubtful = unsound(task, trial.outputs, trial.recording, covered, aligned, is_tried=True)
        sound = covered - doubtful
        trusted = sound - _wrong_rules(task, rules, sound, trial)
        others = [name for name in task.parameters if name not in trusted]
        if others:
            choice = _without_rules(others, task, trial)
        else:
            choice = Choice(frozenset(trusted), is_plain=_has_plain_layers_only(trial.recording))
        tried = frozenset(trial.active(trusted))
        return Start(task, choice, tried, frozenset(aligned), dtype)


def _wrong_rules(
    task: OneTask, rules: Mapping[str, FisherRule], names: Set[str], trial: Trial
) -> set[str]:
    wrong = _wrong(task, rules, names, trial, by_layer=task_is_double(trial))
    if not wrong or task_is_double(trial):
        return wrong
    # A second look with more digits, for gradients that are nothing but rounding.
    double = torch.float64
    try:
        with in_precision(task.layers.values(), double):
            finer = make_trial(task, rules, converted(trial.x, double))
            return _wrong(task, rules, wrong, finer, by_layer=True)
    except Exception:  # a model that insists on its type
        return wrong


def task_is_double(trial: Trial) -> bool:
    """Whether there are no more digits to be had."""
    return trial.dtype == torch.float64


def _wrong(
    task: OneTask,
    rules: Mapping[str, FisherRule],
    names: Set[str],
    trial: Trial,
    *,
    by_layer: bool,
) -> set[str]:
    try:
        by_rule = ByRule(names, rules, trial.outputs, trial.recording)
        squares, sums = by_rule.squares(trial.factor), by_rule.gradients(trial.factor)
    except Exception:  # a rule meets inputs that it was not written for
        parts = [{n for n in names if layer_of(n) == layer} for layer in {*map(layer_of, names)}]
        if len(parts) == 1:
            return set(names)
        return set().union(*(_wrong(task, rules, p, trial, by_layer=by_layer) for p in parts))
    of_layer = layer_of if by_layer else None
    return trial.disagreeing(names, squares, of_layer) | trial.disagreeing_sums(sums, of_layer)


def layer_of(name: str) -> str:
    """The name of a parameter's layer."""
    return name.rpartition(".")[0]


def _trial_dtype(task: OneTask, x: Tensor | Samples) -> torch.dtype:
    """Float32 at least, if the model can be run in it."""
    own = coarsest(
        parameter.dtype
        for module in task.layers.values()
        for parameter in module._parameters.values()
        if parameter is not None
    )
    single = torch.promote_types(own, torch.float32)
    if single == own:
        return single
    try:
        with torch.no_grad(), in_precision(task.layers.values(), single):
            task.outputs(converted(joined([x, x])[:N_TRIAL], single))
    except Exception:  # a model that insists on its type
        return own
    return single


def _keeps_dimension(task: OneTask, x: Tensor | Samples) -> bool:
    """Whether the output for one sample has as many dimensions as that for several."""
    with torch.no_grad():
        several = task.outputs(joined([x[:1], x[:1]]))
        try:
            return task.outputs(x[:1]).shape == several[:1].shape
        except Exception:
            return False


def _without_rules(names: Sequence[str], task: OneTask, trial: Trial) -> Choice:
    """These parameters by ``vmap``, or by single samples where that fails; others by rules."""
    try:
        squares = ByVmap(names, task, trial.x).squares(trial.factor)
        wrong = trial.disagreeing(names, squares, layer_of)
    except Exception:  # what vmap cannot trace ends in errors of every kind
        wrong = set(names)
    return Choice(
        frozenset(task.parameters.keys() - set(names)),
        tuple(n for n in names if n not in wrong),
        tuple(n for n in names if n in wrong),
    )


def _has_plain_layers_only(recording: Recording) -> bool:
    return all(isinstance(c.layer, nn.Linear) and c.inputs.dim() == 2 for c in recording.calls)
