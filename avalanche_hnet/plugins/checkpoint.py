"""A run that is killed and started again goes on, as a plugin for Avalanche's strategies."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.supervised import JointTraining
from avalanche.training.templates import SupervisedTemplate

from avalanche_hnet.core.common.arguments import at_least
from avalanche_hnet.plugins.checkpointing import avalanche_kinds as avalanche_kinds
from avalanche_hnet.plugins.checkpointing.kinds import register_checkpoint_state
from avalanche_hnet.plugins.checkpointing.run import Run
from avalanche_hnet.plugins.checkpointing.stages import Stages
from avalanche_hnet.plugins.checkpointing.within import Within, refuse_other_loops


class CheckpointPlugin(SupervisedPlugin):
    """A run that is interrupted at any moment goes on when its script is started again.

    It ends with the same weights, posterior and metrics as a run that was never interrupted, bit
    for bit on the same machine with the same number of threads. The script stays as it is::

        strategy = Naive(..., plugins=[PriorEWCPlugin(), CheckpointPlugin("run")])
        for experience in benchmark.train_stream:
            strategy.train(experience)
            strategy.eval(benchmark.test_stream)

    After each trained experience all that the rest of the run depends on is written to the folder.
    Where the script finds a checkpoint there, it skips the calls of ``train`` and ``eval`` that
    were finished then: they return what they returned before, and nothing is trained, evaluated or
    logged again. (An evaluation that no training has followed is repeated, with the same results.)
    So a script must make the same calls in the same order; that it does, and that model, options
    and versions are the same, is compared.

    Held are: the model with all heads, embeddings and buffers; optimizers; learning rate
    schedulers; the state of all plugins and metrics; the number of each iteration; and all random
    states of Python, NumPy and PyTorch. A plugin or metric whose state is not known is refused
    when the run starts. :func:`register_checkpoint_state` is for your own.

    A file is written beside the others first and then renamed, and has a SHA-256 checksum. One
    that is damaged is put aside, with a warning, and the one before it is used. Nothing in a file
    is run: it is loaded with ``weights_only=True``.

    After an exception the state may be that of half a step. So nothing is written any more;
    start the script again.

    Args:
        folder: of this run alone.
        every_iterations: also write a checkpoint so many iterations after the start of an
            experience, and again.
        keep: the number of checkpoints to keep.

    Raises:
        TypeError, ValueError: if an argument is out of its range. When the run starts: if the
            strategy, a plugin or a metric cannot be saved, or the folder's run is another one.
        OSError: if the folder cannot be written to; what was there stays.
    """

    def __init__(
        self, folder: str | PathLike[str], every_iterations: int | None = None, keep: int = 2
    ) -> None:
        super().__init__()
        if not isinstance(folder, str | PathLike):
            raise TypeError(f"folder must be a path, got {folder!r}")
        if every_iterations is not None:
            at_least(1, every_iterations=every_iterations)
        at_least(1, keep=keep)
        self.folder = Path(folder)
        self.every_iterations = every_iterations
        self.keep = keep
        self._run: Run | None = None

    def before_training(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Find out, at the start of the first call, where the run goes on."""
        self._start(strategy, "train")

    def before_eval(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Find out, at the start of the first call, where the run goes on."""
        self._start(strategy, "eval")

    def _start(self, strategy: SupervisedTemplate, kind: str) -> None:
        if self._run is not None:
            if self._run.strategy is not strategy:
                raise ValueError(
                    "this CheckpointPlugin belongs to another strategy; make one for each, with a "
                    "folder of its own"
                )
            return
        if sum(isinstance(plugin, CheckpointPlugin) for plugin in strategy.plugins) > 1:
            raise ValueError("plugins has more than one CheckpointPlugin; leave one")
        if isinstance(strategy, JointTraining):
            raise ValueError(
                "CheckpointPlugin does not go with JointTraining, which has only one call to train"
            )
        within = self.every_iterations is not None
        if within:
            refuse_other_loops(strategy)
        run = Run(strategy, self.folder, self.keep, within)
        self._run = run
        Stages(strategy, run, Within(run, self.every_iterations) if self.every_iterations else None)
        run.begin(kind)


register_checkpoint_state(CheckpointPlugin, save=lambda plugin: {}, load=lambda plugin, state: None)
