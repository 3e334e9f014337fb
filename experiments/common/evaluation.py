"""Testing a model whose tasks are inferred, and reading what an evaluation returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from avalanche.logging import BaseLogger
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn

from avalanche_hnet import InMemoryPlugin, TaskInferencePlugin


def inferring_tester(
    strategy: SupervisedTemplate,
    inference: Mapping[str, Any],
    *metrics: Any,
    loggers: Sequence[BaseLogger] = (),
) -> Naive:
    """A strategy that tests the model of another, with arguments for the inference of tasks."""
    return Naive(
        model=strategy.model,
        optimizer=strategy.optimizer,
        criterion=nn.CrossEntropyLoss(),
        eval_mb_size=strategy.eval_mb_size,
        device=strategy.device,
        plugins=[
            *(plugin for plugin in strategy.plugins if isinstance(plugin, InMemoryPlugin)),
            TaskInferencePlugin(**inference),
        ],
        evaluator=EvaluationPlugin(*metrics, loggers=[*loggers]),
    )


def by_experience(metrics: Mapping[str, float], name: str) -> list[float]:
    """Values of a metric of the test stream's experiences, in their order; empty without it."""
    prefix = f"{name}/eval_phase/test_stream/"
    values = {key.rpartition("/")[2]: v for key, v in metrics.items() if key.startswith(prefix)}
    return [values[experience] for experience in sorted(values)]
