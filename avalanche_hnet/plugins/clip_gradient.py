"""Gradient clipping, as a plugin for Avalanche's strategies."""

from __future__ import annotations

from typing import Any

from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from avalanche.training.templates.update_type import MetaUpdate

from avalanche_hnet.core.common.clipping import Clipping
from avalanche_hnet.core.common.optimizers import parameters_of
from avalanche_hnet.plugins.checkpointing.kinds import register_checkpoint_state


class ClipGradientPlugin(SupervisedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Bounds the gradient along which a strategy's optimizer is about to step.

    With g the gradients of all the optimizer's parameters, and after each element was cut to
    [−value, value],

        g ← min(1, norm / ‖g‖) g

    (Pascanu, Mikolov & Bengio 2013, arXiv 1211.5063, algorithm 1), as ``clip_grad_value_`` and
    then ``clip_grad_norm_`` of ``torch.nn.utils`` do. Both bounds hold afterwards.

    It happens right before the step (``before_update``), so what is clipped is the full gradient:
    with replayed samples, with what plugins add to the loss before the backward pass, and as GEM
    and its like have projected it after the backward pass. The place among a strategy's plugins
    matters only beside others that change gradients in ``before_update``.

    The penalties of :class:`PriorEWCPlugin` are part of the loss, and are clipped with it, where
    ``penalty_step="gradient"``. Implicit steps come after the optimizer's and are not clipped:
    they are stable without, and a bound would move the solution.

    In :class:`HypernetTemplate` it clips the gradient of the task's loss, that of the
    experience's own parameters included, before Δθ is computed, and then θ's full gradient.

    Args:
        norm: largest Euclidean norm of all gradients together; None: no bound.
        value: largest absolute value of each element; None: no bound.

    Raises:
        TypeError, ValueError: if neither is given, or one is not positive and finite. When a
            training begins: if the strategy makes no such steps, as meta-learning does not.
    """

    def __init__(self, norm: float | None = None, value: float | None = None) -> None:
        super().__init__()
        self.clipping = Clipping(norm, value)

    def before_training(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Refuse strategies in which nothing would be clipped."""
        if isinstance(strategy, MetaUpdate):
            raise ValueError(
                f"ClipGradientPlugin does not go with {type(strategy).__name__}, whose inner and "
                "outer updates show their gradients to no plugin; use its own options"
            )

    def before_update(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Clip."""
        self.clipping.apply(parameters_of(strategy.optimizer))


register_checkpoint_state(ClipGradientPlugin, skip={"clipping"})


def clippings_of(strategy: SupervisedTemplate) -> list[Clipping]:
    """Those of a strategy's :class:`ClipGradientPlugin`, usually one or none."""
    return [p.clipping for p in strategy.plugins if isinstance(p, ClipGradientPlugin)]
