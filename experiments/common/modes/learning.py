"""Learn to classify Gaussian modes with one method."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import TensorboardLogger
from avalanche.models import IncrementalClassifier
from avalanche.training import Naive
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn

from avalanche_hnet import (
    BlockMultiHeadClassifier,
    PriorEWCPlugin,
    TaskInferencePlugin,
)
from avalanche_hnet.benchmarks import GaussianMixture2D
from avalanche_hnet.metrics import task_inference_metrics
from experiments.in_memory import memory_plugins
from experiments.iterations import IterationsPlugin
from experiments.mode_networks import ModeNetwork, mlp
from experiments.mode_options import GaussianMixtureOptions, ModeMethod


@dataclass(frozen=True)
class ModeResult:
    """Final accuracies in percent on the test data of all tasks, None where there is no such."""

    method: ModeMethod
    seed: int
    given: float | None
    """With the task label given."""
    not_given: float | None
    """Without it."""
    tasks: float | None
    """Samples whose task is inferred correctly."""


def make_benchmark(options: GaussianMixtureOptions) -> GaussianMixture2D:
    """The benchmark of the scenario."""
    from_zero = options.scenario != "class"
    return GaussianMixture2D(seed=options.data_seed, class_ids_from_zero_in_each_exp=from_zero)


def learn(
    method: ModeMethod,
    options: GaussianMixtureOptions,
    seed: int,
    log_folder: Path,
    *plugins: SupervisedPlugin,
) -> tuple[ModeResult, dict[str, Any]]:
    """Train on all tasks, testing on those seen so far after each.

    Events are in ``log_folder``, those of tests without task labels in its ``not-given``.

    Returns:
        The final accuracies, and the arguments of a :class:`TaskInference` that predicts as the
        method does.
    """
    RNGManager.set_random_seeds(seed)
    benchmark = make_benchmark(options)
    strategy, inference = make_strategy(method, options, log_folder)
    strategy.plugins += plugins
    testing = Naive(  # is not trained
        model=strategy.model,
        optimizer=strategy.optimizer,
        eval_mb_size=1000,
        plugins=[*memory_plugins(options.in_memory), TaskInferencePlugin(**inference)],
        evaluator=EvaluationPlugin(
            accuracy_metrics(experience=True, stream=True),
            task_inference_metrics(experience=options.infers_tasks(method)),
            loggers=[TensorboardLogger(log_folder / "not-given")],
        ),
    )
    testing.clock = strategy.clock  # for the step of what it logs
    given: dict[str, float] = {}
    not_given: dict[str, float] = {}
    for index, experience in enumerate(benchmark.train_stream):
        strategy.train(experience, reset_optimizer_state=True)
        seen = benchmark.test_stream[: index + 1]
        if options.is_told_tasks(method):
            given = strategy.eval(seen)
        if options.scenario != "task":
            not_given = testing.eval(seen)
    result = ModeResult(
        method,
        seed,
        _average(given, "Top1_Acc_Exp"),
        _average(not_given, "Top1_Acc_Exp"),
        _average(not_given, "TaskInference_Acc_Exp"),
    )
    return result, {"model": strategy.model, **inference}


def make_strategy(
    method: ModeMethod, options: GaussianMixtureOptions, log_folder: Path
) -> tuple[SupervisedTemplate, dict[str, Any]]:
    """The strategy of the method, and the options of a :class:`TaskInference` for it."""
    n_classes = 6 if options.scenario == "class" else 2
    plugins: list[SupervisedPlugin] = [
        *memory_plugins(options.in_memory),
        IterationsPlugin(options.iterations),
    ]
    common: dict[str, Any] = {
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": options.batch_size,
        "eval_mb_size": 1000,
        "plugins": plugins,
        "evaluator": EvaluationPlugin(
            accuracy_metrics(experience=True, stream=True), loggers=[TensorboardLogger(log_folder)]
        ),
    }
    inference: dict[str, Any] = {"criterion": options.criterion}
    if method == "hypernet":
        is_class = options.scenario == "class"
        hypernet = replace(
            options.hypernet,
            multi_head=options.hypernet.multi_head or is_class,
            prior_variance=options.hypernet.prior_variance or options.prior_variance,
        )
        network = mlp(options.hidden, options.activation)
        n_outputs = 6 if hypernet.multi_head else 2
        network.append(nn.Linear(options.hidden[-1], n_outputs))
        generated = hypernet.make_model(network)
        rate = hypernet.learning_rate or options.learning_rate
        optimizer = torch.optim.Adam(generated.parameters(), rate)
        strategy = hypernet.make_strategy(
            generated, optimizer, log_every=100, in_memory=options.in_memory, **common
        )
        return strategy, inference

    n_networks = 3 if method == "separate" else 1
    features = [mlp(options.hidden, options.activation) for _ in range(n_networks)]
    head: nn.Module
    if options.is_told_tasks(method):
        head = BlockMultiHeadClassifier(options.hidden[-1])
    elif options.head == "growing":
        head = IncrementalClassifier(options.hidden[-1])
    else:
        head = nn.Linear(options.hidden[-1], n_classes)
    if not options.is_told_tasks(method):
        inference["tasks"] = (0,)  # any label will do, the outputs are the same
    if method in ("prior-ewc", "separate"):  # which for separate networks is the prior alone
        ewc = PriorEWCPlugin(options.ewc_lambda, options.prior_variance, log_every=100)
        plugins.append(ewc)
        if method == "prior-ewc":
            inference |= {"posterior": ewc.posterior, "method": options.prediction}
    model = ModeNetwork(features, head)
    optimizer = torch.optim.Adam(model.parameters(), options.learning_rate)
    return Naive(model=model, optimizer=optimizer, **common), inference


def _average(metrics: dict[str, float], name: str) -> float | None:
    """Of all experiences, in percent; None where there is no such metric."""
    found = {n: value for n, value in metrics.items() if n.startswith(f"{name}/eval_phase/")}
    return 100 * sum(found.values()) / len(found) if found else None
