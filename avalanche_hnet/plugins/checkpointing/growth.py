"""How a model has grown, so that another one can grow in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from avalanche.benchmarks import CLExperience
from avalanche.training.templates import SupervisedTemplate

from avalanche_hnet.plugins.checkpointing.journal import Key, key_of
from avalanche_hnet.plugins.isolated_evaluation import IsolatedEvaluationPlugin

_Step = tuple[bool, str, int]


class Growth:
    """The experiences that a model was adapted to, in order, each in training and in evaluation.

    Which heads there are, and in which order, depends on it. Adapting to an experience again
    changes nothing, so the first time is enough.
    """

    def __init__(self) -> None:
        self._steps: dict[_Step, None] = {}
        self._experiences: dict[Key, CLExperience] = {}

    def remember(self, experience: CLExperience) -> None:
        """An experience that the model may have been adapted to in an earlier process."""
        self._experiences[key_of(experience)] = experience

    def adapted(self, strategy: SupervisedTemplate) -> None:
        """A strategy's model has been adapted to the strategy's experience."""
        if not strategy.is_training and _forgets_evaluations(strategy):
            return
        stream, number = key_of(strategy.experience)
        self._steps[(strategy.is_training, stream, number)] = None

    def to_state(self) -> list[list[Any]]:
        """In plain values."""
        return [list(step) for step in self._steps]

    def grow_to(self, strategy: SupervisedTemplate, state: Sequence[Sequence[Any]]) -> None:
        """Adapt a strategy's model to what is new in :meth:`to_state`.

        Raises:
            ValueError: if the script has not shown one of the experiences.
        """
        before = strategy.experience, strategy.is_training
        modes = {module: module.training for module in strategy.model.modules()}
        for is_training, stream, number in state[len(self._steps) :]:
            strategy.experience = self._experience(strategy, stream, number)
            strategy.is_training = is_training
            strategy.model.train(is_training)
            strategy.model = strategy.model_adaptation()
        strategy.experience, strategy.is_training = before
        for module in strategy.model.modules():
            module.training = modes.get(module, before[1])

    def _experience(self, strategy: SupervisedTemplate, stream: str, number: int) -> CLExperience:
        if (stream, number) in self._experiences:
            return self._experiences[stream, number]
        for known in self._experiences.values():
            streams = getattr(getattr(known.origin_stream, "benchmark", None), "streams", {})
            if stream in streams and number < len(streams[stream]):
                return streams[stream][number]
        raise ValueError(
            f"the run has used experience {number} of the stream {stream!r}, which this script has "
            "not shown"
        )


def _forgets_evaluations(strategy: SupervisedTemplate) -> bool:
    return any(isinstance(plugin, IsolatedEvaluationPlugin) for plugin in strategy.plugins)
