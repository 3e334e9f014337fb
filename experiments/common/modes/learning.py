"""Learn to classify Gaussian modes with one method."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import TensorboardLogger
from avalanche.models import IncrementalClassifier
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn

from avalanche_hnet import BlockMultiHeadClassifier
from avalanche_hnet.benchmarks import GaussianMixture2D
from avalanche_hnet.metrics import task_inference_metrics
from experiments.common.evaluation import by_experience, inferring_tester
from experiments.common.hypernet import HypernetOptions
from experiments.common.modes.networks import ModeNetwork, mlp
from experiments.common.modes.options import MODE_METHODS, GaussianMixtureOptions, ModeMethod
from experiments.common.modes.results import ModeResult
from experiments.common.strategy import build_strategy

LOG_EVERY = 100


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
    testing = inferring_tester(
        strategy,
        inference,
        accuracy_metrics(experience=True, stream=True),
        task_inference_metrics(experience=options.infers_tasks(method)),
        loggers=[TensorboardLogger(log_folder / "not-given")],
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
    entry = MODE_METHODS[method]
    hypernet = _hypernet(options)
    model = _generated(hypernet, options) if entry.through_hypernetwork else _model(method, options)
    plugins = entry.plugins(
        options.strength(method), prior_variance=options.prior_variance, log_every=LOG_EVERY
    )
    inference: dict[str, Any] = {"criterion": options.criterion}
    if not options.is_told_tasks(method):
        inference["tasks"] = (0,)  # any label will do, the outputs are the same
    if entry.has_posterior:
        inference |= {"posterior": plugins[0].posterior, "method": options.prediction}
    strategy = build_strategy(
        entry,
        model,
        criterion=nn.CrossEntropyLoss(),
        evaluator=EvaluationPlugin(
            accuracy_metrics(experience=True, stream=True), loggers=[TensorboardLogger(log_folder)]
        ),
        iterations=options.iterations,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        in_memory=options.in_memory,
        plugins=plugins,
        hypernet=hypernet,
        log_every=LOG_EVERY,
    )
    return strategy, inference


def _hypernet(options: GaussianMixtureOptions) -> HypernetOptions:
    """Its settings, with those that the experiment decides."""
    return replace(
        options.hypernet,
        multi_head=options.hypernet.multi_head or options.scenario == "class",
        prior_variance=options.hypernet.prior_variance or options.prior_variance,
    )


def _generated(hypernet: HypernetOptions, options: GaussianMixtureOptions) -> nn.Module:
    """A network for each task, from a hypernetwork."""
    n_outputs = 6 if hypernet.multi_head else 2
    network = mlp(options.hidden, options.activation)
    return hypernet.make_model(network.append(nn.Linear(options.hidden[-1], n_outputs)))


def _model(method: ModeMethod, options: GaussianMixtureOptions) -> nn.Module:
    """An ordinary network, with the head that the options ask for."""
    n_networks = 3 if method == "separate" else 1
    features = [mlp(options.hidden, options.activation) for _ in range(n_networks)]
    head: nn.Module
    if options.is_told_tasks(method):
        head = BlockMultiHeadClassifier(options.hidden[-1])
    elif options.head == "growing":
        head = IncrementalClassifier(options.hidden[-1])
    else:
        head = nn.Linear(options.hidden[-1], 6 if options.scenario == "class" else 2)
    return ModeNetwork(features, head)


def _average(metrics: dict[str, float], name: str) -> float | None:
    """Of all experiences, in percent; None where there is no such metric."""
    values = by_experience(metrics, name)
    return 100 * sum(values) / len(values) if values else None
