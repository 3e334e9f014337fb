"""What online EWC knows, and what it knows that it does not know, after three functions.

A network learns three one-dimensional functions, one after the other, with PriorEWCPlugin and a
Gaussian likelihood. Its posterior then predicts on the whole line: near the data of all tasks with
small uncertainty that covers the true functions, elsewhere with a large one. With one head there
is one curve; with a head for each task, one curve per task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from avalanche.logging import TensorboardLogger
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from avalanche_hnet import (
    Gaussian,
    Posterior,
    PriorEWCPlugin,
    RegressionPrediction,
    predict,
)
from avalanche_hnet.benchmarks import Regression1D
from avalanche_hnet.metrics import mse_metrics
from experiments.common.command import run_command
from experiments.common.iterations import ProgressPlugin
from experiments.common.methods import METHODS
from experiments.common.parts import Run
from experiments.common.run_folder import print_report, say_finished, write_json
from experiments.common.strategy import build_strategy
from experiments.common.uncertainty.figure import Panel, draw_uncertainty
from experiments.common.uncertainty.measures import (
    Prediction,
    TaskResult,
    evaluate,
    shown_interval,
)
from experiments.common.uncertainty.network import make_network
from experiments.common.uncertainty.options import UncertaintyOptions
from experiments.common.uncertainty.results import describe, panel_title, summary


def main(options: UncertaintyOptions) -> Path:
    """Learn, draw and print a table; return the run's folder."""
    torch.set_num_threads(1)  # such small networks are slower with more
    kept = Run.begin(options, f"regression-uncertainty-{options.head}")
    folder = kept.folder
    results: list[list[TaskResult]] = []
    for seed in range(options.seeds):
        part = f"seed{seed}"
        entries = kept.find(part, folder / "tensorboard" / part)
        if entries is None:
            results.append(kept.keep(part, learn(options, seed, folder)))
        else:
            results.append([TaskResult(**of_task) for of_task in entries])
        report = {
            "settings": asdict(options),
            "seeds": [[asdict(result) for result in tasks] for tasks in results],
        }
        write_json(report, folder / "results.json")
        covered = ", ".join(f"{result.coverage:.1f}" for result in results[-1])
        say_finished(f"{options.head} head, seed {seed}: truth in the bands on {covered} %")
    print_report(folder, summary(results, options))
    return folder


def learn(options: UncertaintyOptions, seed: int, folder: Path) -> list[TaskResult]:
    """Learn all functions in turn, draw what the posterior predicts, and measure it."""
    RNGManager.set_random_seeds(seed)
    benchmark = options.make_benchmark()
    n_tasks = len(benchmark.domains)
    logger = TensorboardLogger(folder / "tensorboard" / f"seed{seed}")
    model = make_network(options, shown_interval(benchmark))
    plugin = PriorEWCPlugin(
        options.ewc_lambda,
        options.prior_variance,
        options.gamma,
        fisher="exact",  # the generalised Gauss-Newton matrix; the empirical one is mostly noise
        likelihood=Gaussian(options.noise_std),
        prior_mean=options.prior_mean,
        structure=options.structure,
        log_every=100,
    )
    with tqdm(total=options.iterations * n_tasks, disable=None) as progress:
        progress.set_description(f"{options.head} head, seed {seed}")
        strategy = make_strategy(options, model, logger, plugin)
        strategy.plugins.append(ProgressPlugin(progress))
        for number, experience in enumerate(benchmark.train_stream):
            strategy.train(experience, reset_optimizer_state=True)
            strategy.eval(benchmark.test_stream[: number + 1])

    generator = torch.Generator().manual_seed(seed)
    predict_task = partial(posterior_prediction, options, model, plugin.posterior, generator)
    results = [evaluate(benchmark, task, predict_task) for task in range(n_tasks)]
    for result in results:
        for measure, value in asdict(result).items():
            if measure != "task" and value is not None:
                logger.writer.add_scalar(f"Uncertainty/{measure}/Task{result.task:03}", value)
    figure = draw(options, benchmark, results, predict_task)
    figure.savefig(folder / f"uncertainty-seed{seed}.png", dpi=150)
    logger.writer.add_figure("Uncertainty", figure)
    logger.writer.flush()
    return results


def make_strategy(
    options: UncertaintyOptions,
    model: nn.Module,
    logger: TensorboardLogger,
    plugin: PriorEWCPlugin,
) -> SupervisedTemplate:
    """Training with all samples in each iteration."""
    return build_strategy(
        METHODS["prior-ewc"],
        model,
        criterion=nn.MSELoss(),
        evaluator=EvaluationPlugin(mse_metrics(experience=True, stream=True), loggers=[logger]),
        iterations=options.iterations,
        batch_size=2**30,
        learning_rate=options.learning_rate,
        rate_falls=True,
        in_memory=options.in_memory,
        plugins=[plugin],
    )


def posterior_prediction(
    options: UncertaintyOptions,
    model: nn.Module,
    posterior: Posterior,
    generator: torch.Generator,
    task: int,
    x: NDArray[np.float64],
) -> RegressionPrediction:
    """Mean and variances (B, 1) at inputs (B,), with the head of a task if there are several."""
    return predict(
        model,
        posterior,
        torch.as_tensor(x, dtype=torch.get_default_dtype())[:, None],
        options.method,
        likelihood=Gaussian(options.noise_std),
        task_label=task if options.head == "multi" else None,
        n_samples=options.n_samples,
        generator=generator,
    )


def draw(
    options: UncertaintyOptions,
    benchmark: Regression1D,
    results: Sequence[TaskResult],
    predict_task: Prediction,
) -> Figure:
    """The predictions on the whole line: one curve for all tasks, or a panel for each head."""
    tasks = [result.task for result in results]
    x = np.linspace(*shown_interval(benchmark), 1201)
    panels = [
        Panel(panel_title(results, of_panel), of_panel, x, predict_task(of_panel[0], x))
        for of_panel in ([tasks] if options.head == "single" else [[task] for task in tasks])
    ]
    title = f"{describe(options)}, after the last of {len(tasks)} tasks"
    return draw_uncertainty(benchmark, panels, title)


if __name__ == "__main__":
    run_command(main, UncertaintyOptions, __doc__)
