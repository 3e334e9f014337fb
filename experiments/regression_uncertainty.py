"""What online EWC knows, and what it knows that it does not know, after three functions.

A network learns three one-dimensional functions, one after the other, with PriorEWCPlugin and a
Gaussian likelihood. Its posterior then predicts on the whole line: near the data of all tasks with
small uncertainty that covers the true functions, elsewhere with a large one. With one head there
is one curve; with a head for each task, one curve per task.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise
from math import cos, pi
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from avalanche.logging import TensorboardLogger
from avalanche.training import Naive
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins import EvaluationPlugin, LRSchedulerPlugin
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import nn
from tqdm import tqdm

from avalanche_hnet import (
    Gaussian,
    GaussianPosterior,
    PriorEWCPlugin,
    RegressionPrediction,
    predict,
)
from avalanche_hnet.benchmarks import Regression1D
from avalanche_hnet.metrics import mse_metrics
from experiments.in_memory import memory_plugins
from experiments.iterations import IterationsPlugin, ProgressPlugin
from experiments.uncertainty_figure import Panel, draw_uncertainty
from experiments.uncertainty_measures import TaskResult, evaluate, shown_interval
from experiments.uncertainty_network import GaussianActivation, MultiHeadNetwork

TaskSet = Literal["hypernetworks", "posterior-replay"]

TITLES = {
    "single": "one head",
    "multi": "a head for each task",
    "hypernetworks": "functions of von Oswald et al. 2020",
    "posterior-replay": "functions of Henning et al. 2021",
}


@dataclass(frozen=True, kw_only=True)
class UncertaintyOptions:
    """Settings of the regression with uncertainty."""

    # Chosen on the data of seeds 1 and 2 (the default, 42, was not looked at), for both task sets
    # and both kinds of head at once, from: Gaussian, Tanh, Sigmoid and ReLU; 50, 100 and 200 units;
    # steepness 0, 1, 2, 4, 5, 6 and 8; prior variances 0.01, 0.1, 0.2, 0.3 and 1, around zero and
    # around the initial weights; 1,000 to 8,000 iterations; rates 0.001, 0.003, 0.01 and 0.03.
    # Not all combinations. Units that reach over several domains, which are all but the Gaussian
    # ones, made a single head forget, at least in the first task set: a diagonal precision does
    # not know which changes of the weights cancel each other.
    head: Literal["single", "multi"] = "single"
    """One output for all tasks, or one for each, chosen by the task label."""
    task_set: TaskSet = "posterior-replay"
    """The functions: of von Oswald et al. 2020 or of Henning et al. 2021."""
    method: Literal["linearized", "sample", "map"] = "linearized"
    """How the posterior predicts."""
    n_samples: int = 200
    """Networks drawn for the method "sample"."""
    seeds: int = 1
    """Number of repetitions, with the seeds 0, 1, ... for the weights."""
    data_seed: int = 42
    """Of the benchmark."""
    n_train: int | None = None
    """Training samples per task; by default those of the papers, 100 and 20."""
    noise_std: float = 0.05
    """Standard deviation of the noise on the training outputs, which the likelihood knows."""
    hidden: tuple[int, ...] = (200,)
    """Widths of the hidden layers."""
    activation: Literal["Gaussian", "ReLU", "Sigmoid", "Tanh", "ELU"] = "Gaussian"
    """Activation of the network; "Gaussian" is exp(-x²/2)."""
    steepness: float = 5.0
    """Mean absolute weight of the first layer's units at the start, which are centred all over
    the line that is drawn; 0 leaves PyTorch's initial weights."""
    iterations: int = 2000
    """Training iterations per function, each with all of its samples."""
    learning_rate: float = 1e-2
    """Of Adam, which starts anew with each function; it falls to zero along a half cosine."""
    ewc_lambda: float = 1.0
    """Strength of the penalty; 1 is Bayesian."""
    gamma: float = 1.0
    """How much of the earlier precision is kept at each function; 1 is Bayesian."""
    prior_variance: float = 0.2
    """Variance of the prior."""
    prior_mean: Literal["zero", "initial"] = "initial"
    """Mean of the prior. Around zero, units without data lose their place and their variance."""
    in_memory: bool = True
    """Read the data once and serve them from memory, rather than through Avalanche's loaders."""
    output: Path = Path("runs")
    """Folder in which the run makes a folder of its own."""

    def __post_init__(self) -> None:
        """Refuse what no run could use."""
        for name in ("seeds", "iterations", "n_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden must name widths of at least 1, got {self.hidden}")
        for name in ("learning_rate", "noise_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not self.steepness >= 0:
            raise ValueError(f"steepness must be at least 0, got {self.steepness}")

    def make_benchmark(self) -> Regression1D:
        """The task set."""
        chosen: dict[str, Any] = {} if self.n_train is None else {"n_train": self.n_train}
        make = Regression1D if self.task_set == "hypernetworks" else Regression1D.posterior_replay
        return make(noise_std=self.noise_std, seed=self.data_seed, **chosen)


def main(options: UncertaintyOptions) -> Path:
    """Learn, draw and print a table; return the run's folder."""
    torch.set_num_threads(1)  # such small networks are slower with more
    name = f"regression-uncertainty-{options.head}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = options.output / name
    folder.mkdir(parents=True)
    results = [learn(options, seed, folder) for seed in range(options.seeds)]
    report = {
        "settings": asdict(options),
        "seeds": [[asdict(result) for result in tasks] for tasks in results],
    }
    (folder / "results.json").write_text(json.dumps(report, indent=2, default=str) + "\n")
    console = Console()
    console.print(summary(results, options))
    console.print(f"Everything is in {folder.resolve()}", soft_wrap=True)
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

    def prediction(task: int, x: NDArray[np.float64]) -> RegressionPrediction:
        return posterior_prediction(options, model, plugin.posterior, task, x, generator)

    results = [evaluate(benchmark, task, prediction) for task in range(n_tasks)]
    for result in results:
        for measure, value in asdict(result).items():
            if measure != "task" and value is not None:
                logger.writer.add_scalar(f"Uncertainty/{measure}/Task{result.task:03}", value)

    x = np.linspace(*shown_interval(benchmark), 1201)
    everything = [*range(n_tasks)]
    panels = [
        Panel(panel_title(results, tasks), tasks, x, prediction(tasks[0], x))
        for tasks in ([everything] if options.head == "single" else [[t] for t in everything])
    ]
    title = f"{describe(options)}, after the last of {n_tasks} tasks"
    figure = draw_uncertainty(benchmark, panels, title)
    figure.savefig(folder / f"uncertainty-seed{seed}.png", dpi=150)
    logger.writer.add_figure("Uncertainty", figure)
    logger.writer.flush()
    return results


def posterior_prediction(
    options: UncertaintyOptions,
    model: nn.Module,
    posterior: GaussianPosterior,
    task: int,
    x: NDArray[np.float64],
    generator: torch.Generator,
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


def make_network(options: UncertaintyOptions, interval: tuple[float, float]) -> nn.Module:
    """An MLP from one number to one, or to one for each task.

    Centres of the first layer's units are uniform over the interval, unless ``steepness`` is 0.
    """
    activations = {"Gaussian": GaussianActivation}
    activation = activations.get(options.activation) or getattr(nn, options.activation)
    features = nn.Sequential()
    for n_in, n_out in pairwise((1, *options.hidden)):
        features.extend([nn.Linear(n_in, n_out), activation()])
    first = features[0]
    assert isinstance(first, nn.Linear)
    if options.steepness > 0:
        with torch.no_grad():
            slopes = options.steepness * torch.empty(len(first.bias)).uniform_(0.5, 1.5)
            slopes *= torch.where(torch.rand(len(slopes)) < 0.5, -1, 1)
            centres = torch.empty(len(slopes)).uniform_(*interval)
            first.weight[:, 0] = slopes
            first.bias.copy_(-slopes * centres)
    if options.head == "multi":
        return MultiHeadNetwork(features, options.hidden[-1])
    return features.append(nn.Linear(options.hidden[-1], 1))


def make_strategy(
    options: UncertaintyOptions,
    model: nn.Module,
    logger: TensorboardLogger,
    plugin: PriorEWCPlugin,
) -> Naive:
    """Training with all samples in each iteration."""
    optimizer = torch.optim.Adam(model.parameters(), options.learning_rate)
    half_cosine = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + cos(pi * min(step / options.iterations, 1))) / 2
    )
    return Naive(
        model=model,
        optimizer=optimizer,
        criterion=nn.MSELoss(),
        train_mb_size=2**30,
        eval_mb_size=1000,
        plugins=[
            *memory_plugins(options.in_memory),
            IterationsPlugin(options.iterations),
            LRSchedulerPlugin(half_cosine, step_granularity="iteration"),
            plugin,
        ],
        evaluator=EvaluationPlugin(mse_metrics(experience=True, stream=True), loggers=[logger]),
    )


def panel_title(results: Sequence[TaskResult], tasks: Sequence[int]) -> str:
    """What was measured, in one line."""
    covered = ", ".join(f"{results[task].coverage:.0f}" for task in tasks)
    ratios = [r for task in tasks if (r := results[task].ratio) is not None]
    wider = f",\nepistemic band {min(ratios):.1f} times wider outside" if ratios else ""
    name = f"task {tasks[0]}" if len(tasks) == 1 else f"tasks {tasks[0]} to {tasks[-1]}"
    return f"{name}: truth in the bands on {covered} %{wider}"


def describe(options: UncertaintyOptions) -> str:
    """The main settings, as a title."""
    return f"PriorEWC, {TITLES[options.head]}, {TITLES[options.task_set]}, {options.method}"


def summary(results: Sequence[Sequence[TaskResult]], options: UncertaintyOptions) -> Table:
    """One row for each seed and task."""
    table = Table(
        title=describe(options),
        caption="covered: % of the domain where the truth is within two standard deviations; "
        "wider: epistemic standard deviation outside all domains, relative to inside",
    )
    columns = ("seed", "task", "covered", "RMSE", "epistemic", "wider", "in gaps", "beyond")
    for column in columns:
        table.add_column(column, justify="right")
    for seed, tasks in enumerate(results):
        for r in tasks:
            ratios = (r.ratio, r.ratio_gaps, r.ratio_beyond)
            table.add_row(
                str(seed),
                str(r.task),
                f"{r.coverage:.1f}",
                f"{r.rmse:.3f}",
                f"{r.epistemic_std:.3f}",
                *("-" if ratio is None else f"{ratio:.1f}" for ratio in ratios),
            )
    return table


if __name__ == "__main__":
    main(tyro.cli(UncertaintyOptions, description=__doc__))
