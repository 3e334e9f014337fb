"""Learn three one-dimensional functions, one after the other.

The toy example of "Continual learning with hypernetworks" (von Oswald et al. 2020): a hypernetwork
generates the weights of a small network for each function. To compare with: one network that is
trained on the functions in turn, without protection (naive) or with PriorEWCPlugin (ewc), one that
is trained on all at once (joint), and a hypernetwork that starts anew with each function
(from-scratch), whose immediate errors show what each function allows.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
import tyro
from avalanche.logging import TensorboardLogger
from avalanche.training import JointTraining, Naive
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from rich.console import Console
from rich.table import Table
from torch import nn
from tqdm import tqdm

from avalanche_hnet import Gaussian, PriorEWCPlugin
from avalanche_hnet.benchmarks import Regression1D
from avalanche_hnet.metrics import mse_metrics
from experiments.hypernet import HypernetOptions
from experiments.in_memory import memory_plugins
from experiments.iterations import IterationsPlugin, ProgressPlugin
from experiments.regression_figure import FitsPlugin

Method = Literal["hypernet", "ewc", "naive", "joint", "from-scratch"]


@dataclass(frozen=True, kw_only=True)
class ToyRegressionOptions:
    """Settings of the toy regression."""

    method: Method = "hypernet"
    """How to learn the functions."""
    seeds: int = 1
    """Number of repetitions, with the seeds 0, 1, ... for weights and data order."""
    hidden: tuple[int, ...] = (10, 10)
    """Widths of the hidden layers of the main network."""
    activation: Literal["ReLU", "Sigmoid", "Tanh", "ELU"] = "Sigmoid"
    """Activation of the main network."""
    iterations: int = 4001
    """Training iterations per function."""
    batch_size: int = 32
    """Samples per iteration."""
    learning_rate: float = 1e-2
    """Of Adam, which starts anew with each function."""
    noise_std: float = 0.05
    """Standard deviation of the noise on the training outputs, which EWC knows."""
    ewc_lambda: float = 1.0
    """Strength of PriorEWC."""
    prior_variance: float = 1.0
    """Variance of the prior of PriorEWC."""
    hypernet: HypernetOptions = field(
        default_factory=lambda: HypernetOptions(embedding_dim=2, beta=0.005, activation="Sigmoid")
    )
    """Settings of the hypernetwork."""
    in_memory: bool = True
    """Read the data once and serve them from memory, rather than through Avalanche's loaders."""
    output: Path = Path("runs")
    """Folder in which the run makes a folder of its own."""

    def __post_init__(self) -> None:
        """Refuse what no run could use."""
        for name in ("seeds", "iterations", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")


def main(options: ToyRegressionOptions) -> Path:
    """Learn, draw and print a table; return the run's folder."""
    torch.set_num_threads(1)  # such small networks are slower with more
    name = f"toy-regression-{options.method}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = options.output / name
    folder.mkdir(parents=True)
    results = [learn(options, seed, folder) for seed in range(options.seeds)]
    console = Console()
    console.print(summary(results, options))
    console.print(f"Everything is in {folder.resolve()}", soft_wrap=True)
    return folder


def learn(options: ToyRegressionOptions, seed: int, folder: Path) -> list[list[float]]:
    """Mean squared errors on the test data: ``[k][j]`` of function j after learning function k."""
    RNGManager.set_random_seeds(seed)
    benchmark = Regression1D(noise_std=options.noise_std)
    stream = benchmark.train_stream
    n_iterations = options.iterations * (len(stream) if options.method == "joint" else 1)
    errors = []
    with tqdm(total=options.iterations * len(stream), disable=None) as progress:
        progress.set_description(f"{options.method}, seed {seed}")
        strategy = make_strategy(options, n_iterations, folder / "tensorboard" / f"seed{seed}")
        strategy.plugins += [
            ProgressPlugin(progress),
            FitsPlugin(benchmark, options.method, folder / f"fits-seed{seed}"),
        ]
        for index, experiences in enumerate([stream] if options.method == "joint" else stream):
            strategy.train(experiences, reset_optimizer_state=True, drop_last=True)
            learned = len(stream) if options.method == "joint" else index + 1
            metrics = strategy.eval(benchmark.test_stream[:learned])
            found = {n: v for n, v in metrics.items() if n.startswith("MSE_Exp/eval_phase")}
            errors.append([found[n] for n in sorted(found)][:learned])
    return errors


def make_strategy(
    options: ToyRegressionOptions, n_iterations: int, log_folder: Path
) -> SupervisedTemplate:
    """The strategy of the method, which logs to TensorBoard."""
    common: dict[str, Any] = {
        "criterion": nn.MSELoss(),
        "train_mb_size": options.batch_size,
        "eval_mb_size": 1000,
        "plugins": [IterationsPlugin(n_iterations), *memory_plugins(options.in_memory)],
        "evaluator": EvaluationPlugin(
            mse_metrics(experience=True, stream=True), loggers=[TensorboardLogger(log_folder)]
        ),
    }
    hypernet = options.hypernet
    is_hypernet = options.method in ("hypernet", "from-scratch")
    network = main_network(options, 3 if is_hypernet and hypernet.multi_head else 1)
    if is_hypernet:
        if options.method == "from-scratch":
            hypernet = replace(hypernet, train_from_scratch=True, regularizer="none")
        model = hypernet.make_model(network)
        rate = hypernet.learning_rate or options.learning_rate
        return hypernet.make_strategy(
            model,
            torch.optim.Adam(model.parameters(), rate),
            log_every=100,
            in_memory=options.in_memory,
            **common,
        )
    if options.method == "ewc":
        common["plugins"].append(
            PriorEWCPlugin(
                options.ewc_lambda,
                options.prior_variance,
                likelihood=Gaussian(options.noise_std),
                log_every=100,
            )
        )
    strategy = JointTraining if options.method == "joint" else Naive
    optimizer = torch.optim.Adam(network.parameters(), options.learning_rate)
    return strategy(model=network, optimizer=optimizer, **common)


def main_network(options: ToyRegressionOptions, n_outputs: int) -> nn.Sequential:
    """An MLP from one number to ``n_outputs``."""
    network = nn.Sequential()
    sizes = (1, *options.hidden)
    for n_in, n_out in pairwise(sizes):
        network.extend([nn.Linear(n_in, n_out), getattr(nn, options.activation)()])
    network.append(nn.Linear(sizes[-1], n_outputs))
    return network


def summary(results: list[list[list[float]]], options: ToyRegressionOptions) -> Table:
    """Median over seeds of the errors of each function, right after learning it and at the end."""
    table = Table(
        title=f"toy regression, {options.method}: mean squared error on the test data",
        caption=f"median over the seeds 0 to {options.seeds - 1}" if options.seeds > 1 else None,
    )
    for column in ("function", "immediate", "final"):
        table.add_column(column, justify="right")
    for j in range(len(results[0][-1])):
        immediate = median(r[min(j, len(r) - 1)][j] for r in results)
        final = median(r[-1][j] for r in results)
        table.add_row(str(j), f"{immediate:.5f}", f"{final:.5f}")
    return table


if __name__ == "__main__":
    main(tyro.cli(ToyRegressionOptions, description=__doc__))
