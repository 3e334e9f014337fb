"""The stages of a strategy's calls, each of which is run, or skipped if it has been done before.

Plugins are called at certain points, but cannot skip anything. So these methods of one strategy,
the object, are put in front of those of its class.
"""

from __future__ import annotations

from typing import Any

from avalanche.training.templates import SupervisedTemplate

from avalanche_hnet.plugins.checkpointing.run import Run
from avalanche_hnet.plugins.checkpointing.watch import Stage, watch
from avalanche_hnet.plugins.checkpointing.within import Within


class Stages:
    """What a strategy does in the place of its own stages.

    Args:
        strategy: gets these methods.
        run: says what is skipped.
        within: for checkpoints in the middle of experiences; None without.
    """

    def __init__(self, strategy: SupervisedTemplate, run: Run, within: Within | None) -> None:
        self._run = run
        self._within = within
        self._n_nested = 0  # evaluations in the middle of a call
        stages: dict[str, Stage] = {
            "_before_training": self._before_training,
            "_before_training_exp": self._before_training_exp,
            "_train_exp": self._skippable,
            "_after_training_exp": self._skippable,
            "_after_training": self._skippable,
            "_train_cleanup": self._train_cleanup,
            "_save_train_state": self._save_train_state,
            "_before_eval": self._skippable,
            "_before_eval_exp": self._before_eval_exp,
            "_eval_exp": self._skippable,
            "_after_eval_exp": self._skippable,
            "_after_eval": self._skippable,
            "_load_train_state": self._load_train_state,
            "model_adaptation": self._model_adaptation,
        }
        for name, stage in stages.items():
            watch(strategy, name, stage)
        if within is not None:
            within.watch(strategy)

    def _skippable(self, original: Stage, *args: Any, **kwargs: Any) -> Any:
        return None if self._run.skips else self._guarded(original, *args, **kwargs)

    def _before_training(self, original: Stage, **kwargs: Any) -> None:
        self._n_nested = 0
        self._run.begin("train")
        self._skippable(original, **kwargs)

    def _before_training_exp(self, original: Stage, **kwargs: Any) -> None:
        if not self._run.is_broken:
            middle = self._guarded(self._run.begin_experience)
            if self._within is not None:
                self._within.begin_experience(middle)
        self._skippable(original, **kwargs)

    def _train_cleanup(self, original: Stage) -> None:
        original()
        self._end()

    def _save_train_state(self, original: Stage) -> Any:
        if self._run.is_broken:
            self._run.warn_of_broken()
        elif self._run.has_begun:
            self._n_nested += 1
        else:
            self._run.begin("eval")
        return original()

    def _before_eval_exp(self, original: Stage, **kwargs: Any) -> None:
        if self._n_nested == 0 and not self._run.is_broken:
            self._guarded(self._run.begin_experience)
        self._skippable(original, **kwargs)

    def _load_train_state(self, original: Stage, state: Any) -> None:
        original(state)
        if self._n_nested:
            self._n_nested -= 1
        else:
            self._end()

    def _model_adaptation(self, original: Stage, *args: Any, **kwargs: Any) -> Any:
        model = original(*args, **kwargs)
        self._run.growth.adapted(self._run.strategy)
        return model

    def _end(self) -> None:
        if not self._run.is_broken:
            self._guarded(self._run.end)

    def _guarded(self, original: Stage, *args: Any, **kwargs: Any) -> Any:
        """Run it; if it fails, the state is not one to go on from."""
        try:
            return original(*args, **kwargs)
        except BaseException:
            self._run.is_broken = True
            raise
