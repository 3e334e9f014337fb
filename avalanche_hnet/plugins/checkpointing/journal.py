"""The calls of ``train`` and ``eval`` that a run has finished, in order, with their results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from avalanche.benchmarks import CLExperience

from avalanche_hnet.data.experiences import labels_or_none, stated_classes
from avalanche_hnet.plugins.checkpointing.plain import from_plain, to_plain

Key = tuple[str, int]


def key_of(experience: CLExperience) -> Key:
    """The name of an experience's stream and its number there."""
    stream = getattr(experience, "origin_stream", None)
    return str(getattr(stream, "name", "")), int(getattr(experience, "current_experience", -1))


def description_of(experience: CLExperience) -> dict[str, Any]:
    """What must be the same when a run goes on."""
    stream, number = key_of(experience)
    classes = stated_classes(experience)
    return {
        "stream": stream,
        "number": number,
        "samples": len(experience.dataset),
        "classes": None if classes is None else sorted(classes),
        "task labels": labels_or_none(experience),
    }


@dataclass
class Call:
    """One call.

    Attributes:
        kind: ``"train"`` or ``"eval"``.
        experiences: descriptions of those that it has begun.
        result: metrics that have changed since the call before.
    """

    kind: str
    experiences: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)

    def to_state(self) -> dict[str, Any]:
        """In plain values."""
        return {"kind": self.kind, "experiences": self.experiences, "result": self.result}


class Journal:
    """Finished calls. Of results only what changed is kept, so that it grows as the metrics do."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._latest: dict[str, Any] = {}
        self._descriptions: dict[str, dict[str, Any]] = {}

    def described(self, experience: CLExperience) -> dict[str, Any]:
        """A description, one object for all calls with the experience: a file has it once."""
        description = description_of(experience)
        return self._descriptions.setdefault(str(description), description)

    def append(self, call: Call, result: Mapping[str, Any]) -> None:
        """A call has been finished with this result."""
        changed = {n: v for n, v in result.items() if not _is(self._latest.get(n), v)}
        if gone := [name for name in self._latest if name not in result]:
            changed["<gone>"] = gone
        call.result = to_plain(changed, "result")
        self._latest = dict(result)
        self.calls.append(call)

    def result_of(self, number: int) -> dict[str, Any]:
        """All metrics after a call; to be asked for each call in turn, before others are added."""
        changed = from_plain(self.calls[number].result)
        gone = changed.pop("<gone>", [])
        kept = {name: v for name, v in self._latest.items() if name not in gone}
        self._latest = {**kept, **changed}
        return dict(self._latest)

    def to_state(self) -> list[dict[str, Any]]:
        """In plain values."""
        return [call.to_state() for call in self.calls]

    @classmethod
    def from_state(cls, state: list[dict[str, Any]]) -> Journal:
        """The reverse of :meth:`to_state`."""
        journal = cls()
        journal.calls = [Call(**call) for call in state]
        return journal


def _is(before: Any, now: Any) -> bool:
    return before is now or (type(before) is type(now) is float and before == now)
