"""The mean squared error, as Avalanche's metrics report accuracy."""

from __future__ import annotations

import torch.nn.functional as F
from avalanche.evaluation import GenericPluginMetric, Metric, PluginMetric
from avalanche.evaluation.metrics.mean import Mean
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor

from avalanche_hnet.core.common.logits import logits_of
from avalanche_hnet.plugins.checkpointing.kinds import register_checkpoint_state


def mse_metrics(
    *,
    minibatch: bool = False,
    epoch: bool = False,
    epoch_running: bool = False,
    experience: bool = False,
    stream: bool = False,
) -> list[PluginMetric[float]]:
    """Metrics of the mean of (f(x) − y)² over samples and output units.

    It is taken from the strategy's outputs and targets, whatever the criterion is, and every
    sample counts the same in batches of any size. Names have Avalanche's suffixes, as in
    ``MSE_Exp/eval_phase/test_stream/Task000/Exp000``.

    Args:
        minibatch: ``MSE_MB``, of each training iteration.
        epoch: ``MSE_Epoch``, of each training epoch, while the model changes.
        epoch_running: ``RunningMSE_Epoch``, of the epoch so far, at each training iteration.
        experience: ``MSE_Exp``, of each experience that is evaluated.
        stream: ``MSE_Stream``, of all samples of the stream that is evaluated. The task in its
            name is the last experience's, as in Avalanche's own stream metrics.

    Returns:
        What was asked for, in this order; nothing by default.

    Raises:
        TypeError: while running, if targets are not floating-point numbers.
        ValueError: while running, if outputs and targets have different shapes.
    """
    metrics = []
    if minibatch:
        metrics.append(_MSEPluginMetric("MSE_MB", "iteration", "iteration", "train"))
    if epoch:
        metrics.append(_MSEPluginMetric("MSE_Epoch", "epoch", "epoch", "train"))
    if epoch_running:
        metrics.append(_MSEPluginMetric("RunningMSE_Epoch", "epoch", "iteration", "train"))
    if experience:
        metrics.append(_MSEPluginMetric("MSE_Exp", "experience", "experience", "eval"))
    if stream:
        metrics.append(_MSEPluginMetric("MSE_Stream", "stream", "stream", "eval"))
    return metrics


class MSE(Metric[float]):
    """The mean squared error of all that it was updated with since the last reset; 0 at first."""

    def __init__(self) -> None:
        self._mean = Mean()

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in a batch of outputs and targets of one shape, (B, …).

        Raises:
            TypeError: if ``targets`` are not floating-point numbers.
            ValueError: if the shapes differ.
        """
        if not targets.is_floating_point():
            raise TypeError(
                f"targets of a squared error must be floating-point numbers, got {targets.dtype}; "
                "for class labels take accuracy_metrics, for other integers convert the dataset's"
            )
        if outputs.shape != targets.shape:  # would broadcast
            raise ValueError(
                f"targets must have the outputs' shape {tuple(outputs.shape)}, "
                f"got {tuple(targets.shape)}"
            )
        self._mean.update(F.mse_loss(outputs.detach(), targets), weight=targets.numel())

    def result(self) -> float:
        """The mean so far."""
        return self._mean.result()

    def reset(self) -> None:
        """Forget everything."""
        self._mean.reset()


class _MSEPluginMetric(GenericPluginMetric[float, MSE]):
    def __init__(self, name: str, reset_at: str, emit_at: str, mode: str) -> None:
        super().__init__(MSE(), reset_at=reset_at, emit_at=emit_at, mode=mode)
        self._name = name

    def update(self, strategy: SupervisedTemplate) -> None:
        self._metric.update(logits_of(strategy.mb_output), strategy.mb_y)

    def __str__(self) -> str:
        return self._name


for _kind in (MSE, _MSEPluginMetric):
    register_checkpoint_state(_kind)
