"""The methods that the experiments compare, as Avalanche strategies."""

from __future__ import annotations

from math import cos, pi
from pathlib import Path
from typing import Any

import torch
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, loss_metrics
from avalanche.logging import TensorboardLogger
from avalanche.training import JointTraining, Naive
from avalanche.training.plugins import (
    EvaluationPlugin,
    EWCPlugin,
    LRSchedulerPlugin,
    SupervisedPlugin,
)
from avalanche.training.templates import SupervisedTemplate
from torch import nn

from avalanche_hnet import HyperModel, PriorEWCPlugin, TaskInferencePlugin
from avalanche_hnet.metrics import task_inference_metrics
from experiments.in_memory import memory_plugins
from experiments.iterations import IterationsPlugin
from experiments.options import Method, Options


def make_strategy(
    method: Method, model: nn.Module, options: Options, n_experiences: int, log_folder: Path
) -> SupervisedTemplate:
    """The strategy of ``method``, which logs to TensorBoard in ``log_folder``.

    Joint training gets the iterations of all experiences together.
    """
    assert options.ewc_lambda is not None
    assert options.prior_ewc_lambda is not None
    iterations = options.iterations * (n_experiences if method == "joint" else 1)
    rate = options.learning_rate
    if method == "hypernet" and options.hypernet.learning_rate is not None:
        rate = options.hypernet.learning_rate
    optimizer = torch.optim.Adam(model.parameters(), rate)
    half_cosine = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + cos(pi * min(step / iterations, 1))) / 2
    )
    plugins: list[SupervisedPlugin] = [
        IterationsPlugin(iterations),
        LRSchedulerPlugin(half_cosine, step_granularity="iteration"),
        *memory_plugins(options.in_memory),
    ]
    metrics = [
        accuracy_metrics(epoch=True, experience=True, stream=True),
        loss_metrics(epoch=True, experience=True),
        forgetting_metrics(experience=True),
    ]
    posterior: dict[str, Any] = {}
    if method == "prior-ewc":
        ewc = PriorEWCPlugin(
            options.prior_ewc_lambda, options.prior_variance, n_fisher=options.n_fisher
        )
        plugins.append(ewc)
        posterior = {"posterior": ewc.posterior, "method": options.prediction}
    elif method == "ewc":
        plugins.append(EWCPlugin(options.ewc_lambda, mode="online", decay_factor=1.0))
    if options.infers_tasks(method):
        plugins.append(TaskInferencePlugin(criterion=options.criterion, **posterior))
        metrics.append(task_inference_metrics(experience=True, stream=True, confusion_matrix=True))
    common: dict[str, Any] = {
        "model": model,
        "optimizer": optimizer,
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": options.batch_size,
        "eval_mb_size": 500,
        "device": options.device,
        "plugins": plugins,
        "evaluator": EvaluationPlugin(
            *metrics,
            loggers=[TensorboardLogger(log_folder)],
        ),
    }
    if isinstance(model, HyperModel):
        return options.hypernet.make_strategy(in_memory=options.in_memory, **common)
    strategy = JointTraining if method == "joint" else Naive
    return strategy(**common)
