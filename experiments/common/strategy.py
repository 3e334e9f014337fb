"""From a method, a network and settings to an Avalanche strategy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn

from experiments.common.hypernet import HypernetOptions
from experiments.common.in_memory import memory_plugins
from experiments.common.iterations import IterationsPlugin
from experiments.common.methods import Method
from experiments.common.schedule import half_cosine


def build_strategy(
    method: Method,
    model: nn.Module,
    *,
    criterion: nn.Module,
    evaluator: EvaluationPlugin,
    iterations: int,
    batch_size: int,
    learning_rate: float,
    in_memory: bool,
    plugins: Sequence[SupervisedPlugin] = (),
    hypernet: HypernetOptions | None = None,
    rate_falls: bool = False,
    eval_batch_size: int = 1000,
    log_every: int = 50,
    device: str = "cpu",
) -> SupervisedTemplate:
    """The strategy of a method, which trains with Adam.

    Args:
        method: whose strategy it is.
        model: the network, or where the method is through a hypernetwork, a ``HyperModel``.
        criterion: the loss.
        evaluator: its metrics and loggers.
        iterations: in each experience.
        batch_size: samples per iteration.
        learning_rate: at the start of each experience, unless the hypernetwork has its own.
        in_memory: serve the data from memory.
        plugins: of the method and others.
        hypernet: settings of methods that are through a hypernetwork.
        rate_falls: let the learning rate fall to zero along a half cosine.
        eval_batch_size: samples per evaluation step.
        log_every: iterations between two published losses of a hypernetwork.
        device: where to train.
    """
    of_hypernetwork: dict[str, Any] = {}
    if method.through_hypernetwork:
        assert hypernet is not None
        of_hypernetwork = {
            **hypernet.strategy_arguments(),
            "log_every": log_every,
            "in_memory": in_memory,
        }
        if hypernet.learning_rate is not None:
            learning_rate = hypernet.learning_rate
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    return method.strategy(
        model=model,
        optimizer=optimizer,
        criterion=criterion,
        train_mb_size=batch_size,
        eval_mb_size=eval_batch_size,
        device=device,
        plugins=[
            *memory_plugins(in_memory),
            IterationsPlugin(iterations),
            *([half_cosine(optimizer, iterations)] if rate_falls else []),
            *plugins,
        ],
        evaluator=evaluator,
        **of_hypernetwork,
    )
