"""Evaluations that training does not notice, as a plugin for Avalanche's strategies."""

from __future__ import annotations

from typing import Any

from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate

from avalanche_hnet.core.common.random_states import random_state, set_random_state
from avalanche_hnet.models.parts import Parts
from avalanche_hnet.plugins.checkpointing.kinds import register_checkpoint_state


class IsolatedEvaluationPlugin(SupervisedPlugin):
    """Training goes on after an evaluation as if there had been none, bit for bit.

    In Avalanche (0.6.0) an evaluation changes the training that follows it in two ways. Its data
    loaders take random numbers, so that all batches, heads and dropout masks to come are others.
    And the model adapts to what is evaluated: it gets heads for tasks and classes that it has not
    been trained on, whose initial weights come from the random numbers of that moment, and
    ``MultiHeadClassifier`` outputs for classes of other tasks, which enter the softmax.

    With this plugin, both are taken back at the end of each evaluation: the random states of
    PyTorch, Python and NumPy, and what the model's dynamic modules are made of. A head that an
    evaluation made for a task that was not trained on is gone after it, and another evaluation
    makes another: its outputs are random either way.

    Put it first among the plugins, so that what others do in an evaluation is taken back, too.
    What depends on an evaluation's results by intention, such as early stopping, still does. An
    evaluation that is broken off by an exception is not taken back.
    """

    def __init__(self) -> None:
        super().__init__()
        self._before: tuple[dict[str, Any], Parts] | None = None

    def before_eval(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Remember how training left random numbers and model."""
        self._before = random_state(), Parts(strategy.model)

    def after_eval(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Put them back."""
        assert self._before is not None  # an evaluation has begun
        state, parts = self._before
        self._before = None
        parts.restore()
        set_random_state(state)


register_checkpoint_state(
    IsolatedEvaluationPlugin, save=lambda plugin: {}, load=lambda plugin, state: None
)
