"""Train every method on a stream and report on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from avalanche.benchmarks import CLScenario
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import Naive
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from rich.console import Console
from torch import nn
from tqdm import tqdm

from avalanche_hnet import InMemoryPlugin, TaskInferencePlugin
from experiments.figures import draw_matrices
from experiments.in_memory import in_memory
from experiments.methods import make_strategy
from experiments.networks import mlp
from experiments.options import Method, Options, OptionsT
from experiments.results import (
    Result,
    by_scenario,
    inference_table,
    scenarios_table,
    summary_table,
    write_csv,
    write_json,
)


def compare(
    name: str,
    make_benchmark: Callable[[OptionsT, int], CLScenario],
    runs: Sequence[OptionsT],
    *,
    new_classes: int = 0,
) -> Path:
    """Run all methods and seeds, write the report and print its tables.

    Args:
        name: of the experiment, for its folder and titles.
        make_benchmark: makes the benchmark of a scenario's options and a seed.
        runs: options of each scenario, with both strengths given; else they are alike.
        new_classes: in the class scenario, added to the class labels of each experience once more
            than to the last.

    Returns:
        The run's folder: TensorBoard events, ``results.csv``, ``summary.json``, and a picture
        ``matrices-SCENARIO.png`` of each scenario.
    """
    first, several = runs[0], len(runs) > 1
    which = "all" if several else first.scenario
    folder = first.output / f"{name}-{which}-{datetime.now():%Y%m%d-%H%M%S}"
    folder.mkdir(parents=True)
    results = []
    steps = sum(options.seeds * len(options.methods) for options in runs)
    with tqdm(total=steps, disable=None) as progress:
        for options in runs:
            logs = folder / "tensorboard" / (options.scenario if several else "")
            for seed in range(options.seeds):
                benchmark = in_memory(
                    make_benchmark(options, seed),
                    validate=options.validate,
                    new_classes=new_classes if options.scenario == "class" else 0,
                )
                for method in options.methods:
                    progress.set_description(f"{options.scenario}, {method}, seed {seed}")
                    log_folder = logs / method / f"seed{seed}"
                    results.append(train(method, benchmark, options, seed, log_folder))
                    progress.update()

    versions = {p: version(p) for p in ("avalanche-hnet", "avalanche-lib", "torch")}
    settings = {str(options.scenario): asdict(options) for options in runs}
    write_csv(results, folder / "results.csv")
    write_json(results, settings, versions, folder / "summary.json")
    console = Console()
    data = "held-out training data" if first.validate else "test data"
    seeds = "seed 0" if first.seeds == 1 else f"seeds 0 to {first.seeds - 1}"
    for scenario, group in by_scenario(results).items():
        title = f"{name}, {scenario}-incremental, {seeds}, {data}"
        draw_matrices(group, title, folder / f"matrices-{scenario}.png")
        console.print(summary_table(group, title))
        if any(result.inference for result in group):
            console.print(inference_table(group, title))
    if several:
        console.print(scenarios_table(results, f"{name}, {seeds}, {data}"))
    console.print(f"Everything is in {folder.resolve()}", soft_wrap=True)
    return folder


def train(
    method: Method, benchmark: CLScenario, options: Options, seed: int, log_folder: Path
) -> Result:
    """Accuracies of one method after each experience (of joint training, after all)."""
    RNGManager.set_random_seeds(seed)
    stream = benchmark.train_stream
    model = make_model(method, benchmark, options)
    strategy = make_strategy(method, model, options, len(stream), log_folder)
    matrix, inference = [], None
    for experiences in [stream] if method == "joint" else stream:
        # Adam starts anew with each experience, as the papers have it.
        strategy.train(experiences, reset_optimizer_state=True)
        metrics = strategy.eval(benchmark.test_stream)
        matrix.append(_by_experience(metrics, "Top1_Acc_Exp"))
        inference = _by_experience(metrics, "TaskInference_Acc_Exp") or None
    told = _with_task_told(strategy, benchmark) if inference else None
    return Result(method, seed, matrix, options.scenario, inference, told)


def _with_task_told(strategy: SupervisedTemplate, benchmark: CLScenario) -> list[float]:
    """Accuracies of a model that infers tasks, if there is but the right one to choose from."""
    (inference,) = (p for p in strategy.plugins if isinstance(p, TaskInferencePlugin))
    in_memory_plugins = [p for p in strategy.plugins if isinstance(p, InMemoryPlugin)]
    accuracies = []
    for experience in benchmark.test_stream:
        of_task = inference.options | {"tasks": [experience.task_label]}
        teller = Naive(
            model=strategy.model,
            optimizer=strategy.optimizer,
            criterion=nn.CrossEntropyLoss(),
            eval_mb_size=500,
            device=strategy.device,
            plugins=[TaskInferencePlugin(**of_task), *in_memory_plugins],
            evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[]),
        )
        accuracies += _by_experience(teller.eval([experience]), "Top1_Acc_Exp")
    return accuracies


def make_model(method: Method, benchmark: CLScenario, options: Options) -> nn.Module:
    """The network of a method, with the output layer that the scenario calls for."""
    stream = benchmark.train_stream
    x, *_ = stream[0].dataset[0]
    n_classes = 1 + max(c for e in stream for c in e.classes_in_this_experience)
    regularized = {"dropout": options.dropout, "input_noise": options.input_noise}
    if method != "hypernet":
        return mlp(options.heads, x.numel(), options.hidden, n_classes, **regularized)
    if options.scenario == "class" and not options.hypernet.multi_head:
        n_classes = max(len(e.classes_in_this_experience) for e in stream)  # a head has its own
    elif options.scenario != "class" and options.hypernet.multi_head:
        n_classes *= len(stream)
    target = mlp("fixed", x.numel(), options.hidden, n_classes, **regularized)
    return options.hypernet.make_model(target, global_classes=options.scenario == "class")


def _by_experience(metrics: Mapping[str, float], name: str) -> list[float]:
    """Values in percent of a metric of the test stream's experiences, in their order."""
    prefix = f"{name}/eval_phase/test_stream/"
    found = {key: 100 * value for key, value in metrics.items() if key.startswith(prefix)}
    return [found[key] for key in sorted(found, key=lambda key: key.rpartition("/")[2])]
