"""Learn three one-dimensional functions, one after the other.

The toy example of "Continual learning with hypernetworks" (von Oswald et al. 2020): a hypernetwork
generates the weights of a small network for each function. To compare with: one network that is
trained on the functions in turn, without protection (naive) or with PriorEWCPlugin (ewc), one that
is trained on all at once (joint), and a hypernetwork that starts anew with each function
(from-scratch), whose immediate errors show what each function allows.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from avalanche.logging import TensorboardLogger
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from rich.table import Table
from torch import nn
from tqdm import tqdm

from avalanche_hnet import Gaussian
from avalanche_hnet.benchmarks import Regression1D
from avalanche_hnet.core.posterior.structure import Structure
from avalanche_hnet.metrics import mse_metrics
from experiments.common.command import run_command
from experiments.common.evaluation import by_experience
from experiments.common.fits_figure import FitsPlugin
from experiments.common.hypernet import HypernetOptions
from experiments.common.iterations import ProgressPlugin
from experiments.common.layers import hidden_layers
from experiments.common.methods import METHODS, STRUCTURES, Method, all_but
from experiments.common.parts import Run
from experiments.common.run_folder import print_report, say_finished
from experiments.common.settings import (
    ActivationName,
    Count,
    InMemory,
    Output,
    Positive,
    RunFolder,
    Settings,
)
from experiments.common.strategy import build_strategy

REGRESSION_METHODS: dict[str, Method] = {
    "hypernet": METHODS["hypernet"],
    "ewc": METHODS["prior-ewc"],
    "naive": METHODS["naive"],
    "joint": METHODS["joint"],
    "from-scratch": METHODS["hypernet"],
    **all_but("hypernet", "ewc", *STRUCTURES.values(), "naive", "joint"),
}

if TYPE_CHECKING:
    RegressionMethod: TypeAlias = str
else:
    RegressionMethod = Literal[tuple(REGRESSION_METHODS)]

LOG_EVERY = 100


@dataclass(frozen=True, kw_only=True)
class ToyRegressionOptions(Settings):
    """Settings of the toy regression."""

    method: RegressionMethod = "hypernet"
    """How to learn the functions."""
    seeds: Count = 1
    """Number of repetitions, with the seeds 0, 1, ... for weights and data order."""
    hidden: tuple[int, ...] = (10, 10)
    """Widths of the hidden layers of the main network."""
    activation: ActivationName = "Sigmoid"
    """Activation of the main network."""
    iterations: Count = 4001
    """Training iterations per function."""
    batch_size: Count = 32
    """Samples per iteration."""
    learning_rate: Positive = 1e-2
    """Of Adam, which starts anew with each function."""
    noise_std: float = 0.05
    """Standard deviation of the noise on the training outputs, which EWC knows."""
    ewc_lambda: float = 1.0
    """Strength of PriorEWC."""
    prior_variance: float = 1.0
    """Variance of the prior of PriorEWC."""
    structure: Structure = "diagonal"
    """Of its posterior, for the method ewc: diagonal or kronecker."""
    hypernet: HypernetOptions = field(
        default_factory=lambda: HypernetOptions(embedding_dim=2, beta=0.005, activation="Sigmoid")
    )
    """Settings of the hypernetwork."""
    in_memory: InMemory = True
    output: Output = Path("runs")
    run_folder: RunFolder = None


def main(options: ToyRegressionOptions) -> Path:
    """Learn, draw and print a table; return the run's folder."""
    torch.set_num_threads(1)  # such small networks are slower with more
    kept = Run.begin(options, f"toy-regression-{options.method}")
    folder = kept.folder
    results: list[list[list[float]]] = []
    for seed in range(options.seeds):
        part = f"seed{seed}"
        errors = kept.find(part, folder / "tensorboard" / part)
        results.append(errors or kept.keep(part, learn(options, seed, folder)))
        final = ", ".join(f"{error:.5f}" for error in results[-1][-1])
        say_finished(f"{options.method}, seed {seed}: final mean squared errors {final}")
    print_report(folder, summary(results, options))
    return folder


def learn(options: ToyRegressionOptions, seed: int, folder: Path) -> list[list[float]]:
    """Mean squared errors on the test data: ``[k][j]`` of function j after learning function k."""
    RNGManager.set_random_seeds(seed)
    benchmark = Regression1D(noise_std=options.noise_std)
    stream = benchmark.train_stream
    at_once = REGRESSION_METHODS[options.method].at_once
    n_iterations = options.iterations * (len(stream) if at_once else 1)
    errors = []
    with tqdm(total=options.iterations * len(stream), disable=None) as progress:
        progress.set_description(f"{options.method}, seed {seed}")
        strategy = make_strategy(options, n_iterations, folder / "tensorboard" / f"seed{seed}")
        strategy.plugins += [
            ProgressPlugin(progress),
            FitsPlugin(benchmark, options.method, folder / f"fits-seed{seed}"),
        ]
        for index, experiences in enumerate([stream] if at_once else stream):
            strategy.train(experiences, reset_optimizer_state=True, drop_last=True)
            learned = len(stream) if at_once else index + 1
            metrics = strategy.eval(benchmark.test_stream[:learned])
            errors.append(by_experience(metrics, "MSE_Exp")[:learned])
    return errors


def make_strategy(
    options: ToyRegressionOptions, n_iterations: int, log_folder: Path
) -> SupervisedTemplate:
    """The strategy of the method, which logs to TensorBoard."""
    method, hypernet = REGRESSION_METHODS[options.method], options.hypernet
    if options.method == "ewc":
        method = METHODS[STRUCTURES[options.structure]]
    if options.method == "from-scratch":
        hypernet = replace(hypernet, train_from_scratch=True, regularizer="none")
    model: nn.Module
    if method.through_hypernetwork:
        model = hypernet.make_model(main_network(options, 3 if hypernet.multi_head else 1))
    else:
        model = main_network(options, 1)
    if method.has_posterior:
        strength: float | None = options.ewc_lambda
    else:
        strength = method.strength("toy-regression", "task")
    return build_strategy(
        method,
        model,
        criterion=nn.MSELoss(),
        evaluator=EvaluationPlugin(
            mse_metrics(experience=True, stream=True), loggers=[TensorboardLogger(log_folder)]
        ),
        iterations=n_iterations,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        in_memory=options.in_memory,
        plugins=method.plugins(
            strength,
            prior_variance=options.prior_variance,
            likelihood=Gaussian(options.noise_std),
            log_every=LOG_EVERY,
        ),
        hypernet=hypernet,
        log_every=LOG_EVERY,
    )


def main_network(options: ToyRegressionOptions, n_outputs: int) -> nn.Sequential:
    """An MLP from one number to ``n_outputs``."""
    sizes = (1, *options.hidden)
    network = hidden_layers(sizes, getattr(nn, options.activation))
    return network.append(nn.Linear(sizes[-1], n_outputs))


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
    run_command(main, ToyRegressionOptions, __doc__)
