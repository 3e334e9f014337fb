"""Learn a stream of experiences with one method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avalanche.benchmarks import CLScenario
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, loss_metrics
from avalanche.logging import TensorboardLogger
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn

from avalanche_hnet import TaskInferencePlugin
from avalanche_hnet.metrics import task_inference_metrics
from experiments.common.comparison.networks import make_model
from experiments.common.comparison.options import Options
from experiments.common.comparison.results import Result
from experiments.common.evaluation import by_experience, inferring_tester
from experiments.common.methods import METHODS, MethodName
from experiments.common.strategy import build_strategy


def learn(
    method: MethodName, benchmark: CLScenario, options: Options, seed: int, log_folder: Path
) -> Result:
    """Accuracies of one method after each experience (of joint training, after all)."""
    RNGManager.set_random_seeds(seed)
    stream = benchmark.train_stream
    model = make_model(method, benchmark, options)
    strategy = make_strategy(method, model, options, len(stream), log_folder)
    matrix, inference = [], None
    for experiences in [stream] if METHODS[method].at_once else stream:
        # Adam starts anew with each experience, as the papers have it.
        strategy.train(experiences, reset_optimizer_state=True)
        metrics = strategy.eval(benchmark.test_stream)
        matrix.append(_in_percent(by_experience(metrics, "Top1_Acc_Exp")))
        inference = _in_percent(by_experience(metrics, "TaskInference_Acc_Exp")) or None
    told = _with_task_told(strategy, benchmark) if inference else None
    return Result(method, seed, matrix, options.scenario, inference, told)


def make_strategy(
    method: MethodName, model: nn.Module, options: Options, n_experiences: int, log_folder: Path
) -> SupervisedTemplate:
    """The strategy of a method, which logs to TensorBoard in ``log_folder``.

    Joint training gets the iterations of all experiences together.
    """
    entry = METHODS[method]
    plugins = entry.plugins(
        options.strength(method), prior_variance=options.variance(method), n_fisher=options.n_fisher
    )
    metrics = [
        accuracy_metrics(epoch=True, experience=True, stream=True),
        loss_metrics(epoch=True, experience=True),
        forgetting_metrics(experience=True),
    ]
    if options.infers_tasks(method):
        inference: dict[str, Any] = {"criterion": options.criterion}
        if entry.has_posterior:
            inference |= {"posterior": plugins[0].posterior, "method": options.prediction}
        plugins.append(TaskInferencePlugin(**inference))
        metrics.append(task_inference_metrics(experience=True, stream=True, confusion_matrix=True))
    return build_strategy(
        entry,
        model,
        criterion=nn.CrossEntropyLoss(),
        evaluator=EvaluationPlugin(*metrics, loggers=[TensorboardLogger(log_folder)]),
        iterations=options.iterations * (n_experiences if entry.at_once else 1),
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        rate_falls=True,
        in_memory=options.in_memory,
        plugins=plugins,
        hypernet=options.hypernet,
        eval_batch_size=500,
        device=options.device,
    )


def _with_task_told(strategy: SupervisedTemplate, benchmark: CLScenario) -> list[float]:
    """Accuracies of a model that infers tasks, if there is but the right one to choose from."""
    (inference,) = (p for p in strategy.plugins if isinstance(p, TaskInferencePlugin))
    accuracies = []
    for experience in benchmark.test_stream:
        of_task = vars(inference.options) | {"tasks": [experience.task_label]}
        telling = inferring_tester(strategy, of_task, accuracy_metrics(experience=True))
        accuracies += by_experience(telling.eval([experience]), "Top1_Acc_Exp")
    return _in_percent(accuracies)


def _in_percent(shares: list[float]) -> list[float]:
    return [100 * share for share in shares]
