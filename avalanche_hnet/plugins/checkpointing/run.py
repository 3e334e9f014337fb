"""A run that goes on: finished calls are skipped, the state is restored, new ones are recorded."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from avalanche.distributed.distributed_helper import DistributedHelper
from avalanche.training.templates import SupervisedTemplate

from avalanche_hnet.plugins.checkpointing.configuration import (
    configuration,
    differences,
    initial_weights,
)
from avalanche_hnet.plugins.checkpointing.files import CheckpointFile, CheckpointFolder
from avalanche_hnet.plugins.checkpointing.growth import Growth
from avalanche_hnet.plugins.checkpointing.journal import Call, Journal
from avalanche_hnet.plugins.checkpointing.optimizer_state import require_known_parameters
from avalanche_hnet.plugins.checkpointing.strategy_state import (
    load_strategy_state,
    refuse_online,
    strategy_state,
)

_started: dict[Path, int] = {}
"""Folders that this process has used, and the weights that their runs started from."""


@dataclass(frozen=True)
class Resume:
    """What a run goes on from.

    Attributes:
        state: of the checkpoint.
        base: of that at the start of the experience, if ``state`` is from the middle of one.
        journal: the calls that were finished then.
        call: the one that had begun, with the experiences that were finished; None between calls.
    """

    state: Mapping[str, Any]
    base: Mapping[str, Any] | None
    journal: Journal
    call: Call | None

    def expected(self, number: int) -> Call:
        """The call with a number, of those that were finished or had begun."""
        calls = self.journal.calls
        call = calls[number] if number < len(calls) else self.call
        assert call is not None  # otherwise the run has been restored already
        return call


class Run:
    """The calls of one strategy, from the first one on.

    Args:
        strategy: about to begin its first call.
        path: of the folder with the checkpoints.
        keep: how many of them.
        within: whether there are checkpoints in the middle of experiences, too.

    Raises:
        ValueError: if the strategy cannot be saved, or is not the one of the folder's run.
        OSError: if the folder cannot be written to.
    """

    def __init__(self, strategy: SupervisedTemplate, path: Path, keep: int, within: bool) -> None:
        if DistributedHelper.is_distributed:
            raise ValueError("CheckpointPlugin does not go with distributed training; leave it out")
        require_known_parameters(strategy.optimizer, strategy.model)
        strategy_state(strategy)  # or refuse what cannot be saved
        self.strategy = strategy
        self.journal = Journal()
        self.growth = Growth()
        self.is_broken = False
        self._within = within
        self._configuration = configuration(strategy)
        self._initial = initial_weights(strategy.model)
        self._folder = CheckpointFolder(path, keep)
        self._base: CheckpointFile | None = None  # at the start of the present experience
        self._resume = self._found()
        self._n_skipped = 0
        self._call: Call | None = None
        self._has_warned = False

    @property
    def skips(self) -> bool:
        """Whether what comes next has been done before."""
        return self._resume is not None

    @property
    def has_begun(self) -> bool:
        """Whether the strategy is in the middle of a call."""
        return self._call is not None

    def warn_of_broken(self) -> None:
        """Say once that nothing is written any more.

        Raises:
            ValueError: if the run has not even been restored.
        """
        if self.skips:
            raise ValueError(
                f"the run in {self._folder.path} could not go on; make a new strategy to try again"
            )
        if not self._has_warned:
            warnings.warn(
                "a call was broken off, so what follows is not written to "
                f"{self._folder.path}: start the script again to go on from the last checkpoint",
                stacklevel=2,
            )
        self._has_warned = True

    def begin(self, kind: str) -> None:
        """A call begins.

        Raises:
            ValueError: if the script makes another one than before.
        """
        if self._call is not None:
            self.is_broken = True  # it never ended
        if self.is_broken:
            self.warn_of_broken()
            return
        self._call = Call(kind)
        if self._resume is None:
            return
        expected = self._resume.expected(self._n_skipped)
        if expected.kind != kind:
            self._refuse(f"was {expected.kind} and is {kind}")
        self.strategy.evaluator.active = False  # nothing is logged twice
        for stream in self.strategy._eval_streams or ():
            for experience in stream:
                self.growth.remember(experience)

    def begin_experience(self) -> Mapping[str, Any] | None:
        """An experience of the call begins; if the run goes on here, it is restored.

        Returns:
            The state in the middle of the experience that the run goes on from, if there is one.

        Raises:
            ValueError: if it is another experience than before.
        """
        call, experience = self._call, self.strategy.experience
        assert call is not None
        refuse_online(experience)
        self.growth.remember(experience)
        number, description = len(call.experiences), self.journal.described(experience)
        resume, middle = self._resume, None
        if resume is not None:
            expected = resume.expected(self._n_skipped)
            if number < len(expected.experiences):
                self._compare(number, expected.experiences[number], description)
            elif expected is resume.call:
                middle = None if resume.base is None else resume.state
                if middle is not None:
                    self._compare(number, middle["within"]["experience"], description)
                self._restore(resume.state if resume.base is None else resume.base)
            else:
                self._refuse(f"had {number} experiences and has more")
        elif call.kind == "train" and (number or self._within):
            self._base = self._save(call)
        call.experiences.append(description)
        return middle

    def end(self) -> None:
        """The call is over.

        Raises:
            ValueError: if it had more experiences before.
        """
        call, evaluator = self._call, self.strategy.evaluator
        assert call is not None
        self._call = None
        resume = self._resume
        if resume is None:
            self.journal.append(call, evaluator.last_metric_results)
            if call.kind == "train":  # an evaluation is soon repeated
                self._save()
            return
        expected = resume.expected(self._n_skipped)
        if len(call.experiences) != len(expected.experiences):
            n_before, n_now = len(expected.experiences), len(call.experiences)
            self._refuse(f"had {n_before} experiences and has {n_now}")
        evaluator.last_metric_results = resume.journal.result_of(self._n_skipped)
        self._n_skipped += 1
        if resume.call is None and self._n_skipped == len(resume.journal.calls):
            self._restore(resume.state)

    def save_within(self, within: Mapping[str, Any]) -> None:
        """Add a checkpoint in the middle of an experience.

        Args:
            within: where in the experience it is.
        """
        assert self._call is not None
        *finished, present = self._call.experiences
        call = Call(self._call.kind, finished)
        self._save(call, {**within, "experience": present}, self._base)

    def load(self, state: Mapping[str, Any]) -> None:
        """Put the state of a checkpoint into the strategy."""
        self.growth.grow_to(self.strategy, state["growth"])
        load_strategy_state(self.strategy, state["strategy"])

    def _restore(self, state: Mapping[str, Any]) -> None:
        assert self._resume is not None
        self.load(state)
        self.journal = self._resume.journal
        self._resume = None

    def _save(
        self,
        call: Call | None = None,
        within: Mapping[str, Any] | None = None,
        base: CheckpointFile | None = None,
    ) -> CheckpointFile:
        state = {
            "configuration": json.dumps(self._configuration),
            "initial weights": self._initial,
            "journal": self.journal.to_state(),
            "call": None if call is None else call.to_state(),
            "within": within,
            "growth": self.growth.to_state(),
            "strategy": strategy_state(self.strategy),
        }
        return self._folder.write(state, base)

    def _found(self) -> Resume | None:
        path = self._folder.path.resolve()
        began = _started.setdefault(path, self._initial)
        for file, state, base in self._folder.readable():
            if differing := differences(json.loads(state["configuration"]), self._configuration):
                more = f" (and {len(differing) - 5} others)" if len(differing) > 5 else ""
                raise ValueError(
                    f"the run in {path} is another one: {'; '.join(differing[:5])}{more}; go on "
                    "as it began, or use another folder"
                )
            if self._initial != state["initial weights"]:
                self._warn_of_seed(began)
            self._base = file if file.base is None else CheckpointFile(file.base)
            call = state["call"]
            journal = Journal.from_state(state["journal"])
            return Resume(state, base, journal, None if call is None else Call(**call))
        return None

    def _warn_of_seed(self, began: int) -> None:
        if began != self._initial:
            raise ValueError(
                f"{self._folder.path} holds another run of this process, which started from other "
                "weights; use a folder for each run"
            )
        warnings.warn(
            f"the run in {self._folder.path} started from other weights than this script has made "
            "now: it goes on as it was; if it is to be another run, use another folder, and if "
            "not, set a seed in the script",
            stacklevel=2,
        )

    def _compare(self, number: int, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        if differing := [f"{k} {before[k]} and is {now[k]}" for k in now if before[k] != now[k]]:
            self._refuse(f"had, of experience {number}, {'; '.join(differing)}")

    def _refuse(self, difference: str) -> NoReturn:
        self.is_broken = True
        raise ValueError(
            f"the run in {self._folder.path} cannot go on with this script: call "
            f"{self._n_skipped} of train and eval {difference}; make the calls in the same order, "
            "or use another folder"
        )
