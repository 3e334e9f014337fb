"""Predict with PriorEWC's posterior in three ways.

Pairs of digits are learned one after the other, with a head for each. Then the network predicts
at the posterior's mean (map), linearised around it (linearized), and as the average over networks
with weights drawn from the posterior (sample).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from avalanche.benchmarks import CLExperience
from avalanche.training.determinism.rng_manager import RNGManager
from rich.table import Table
from torch import nn

from avalanche_hnet import Posterior, PriorEWCPlugin, predict
from avalanche_hnet.core.posterior.predict import PredictionMethod
from avalanche_hnet.core.posterior.structure import Structure
from experiments import split_digits, split_mnist
from experiments.common.command import run_command
from experiments.common.comparison.learning import make_strategy
from experiments.common.comparison.networks import make_model
from experiments.common.comparison.options import Options
from experiments.common.in_memory import in_memory, tensors_of
from experiments.common.methods import STRUCTURES
from experiments.common.mnist import require_mnist
from experiments.common.parts import Run
from experiments.common.run_folder import print_report, say_finished
from experiments.common.settings import (
    Count,
    DatasetRoot,
    NotNegative,
    Positive,
    RunFolder,
    Settings,
    Widths,
)
from experiments.common.spread import mean_and_spread


@dataclass(frozen=True, kw_only=True)
class PosteriorPredictionOptions(Settings):
    """Settings of the predictions."""

    data: Literal["digits", "mnist"] = "digits"
    """Scikit-learn's digits, or MNIST."""
    seeds: Count = 3
    """Number of repetitions, with the seeds 0, 1, ... for weights, data order and classes."""
    hidden: Widths = (100, 100)
    """Widths of the hidden layers of the MLP."""
    iterations: Count = 500
    """Training iterations per pair of digits."""
    prior_ewc_lambda: NotNegative = 100.0
    """Strength of PriorEWC."""
    prior_variance: Positive = 1.0
    """Variance of the prior of PriorEWC."""
    structure: Structure = "diagonal"
    """Of the posterior: diagonal or kronecker."""
    n_samples: Count = 30
    """Networks that are drawn from the posterior."""
    dataset_root: DatasetRoot = None
    output: Path = Path("runs")
    """Folder in which the run makes a folder of its own, for TensorBoard."""
    run_folder: RunFolder = None


@dataclass(frozen=True)
class Quality:
    """Of predictions of test data: accuracy in percent and mean negative log-likelihood in nats."""

    accuracy: float
    nll: float


Qualities = dict[PredictionMethod, Quality]


def main(options: PosteriorPredictionOptions) -> None:
    """Learn, predict and print the table."""
    torch.set_num_threads(1)
    kept = Run.begin(options, "posterior-prediction")
    folder = kept.folder
    results = []
    for seed in range(options.seeds):
        part = f"seed{seed}"
        entries = kept.find(part, folder / part)
        if entries is None:
            results.append(kept.keep(part, learn(options, seed, folder / part)))
        else:
            first, all_tasks = ({m: Quality(**q) for m, q in of.items()} for of in entries)
            results.append((first, all_tasks))
        qualities = (f"{method} {q.accuracy:.2f} %" for method, q in results[-1][1].items())
        say_finished(f"seed {seed}: {', '.join(qualities)} on all tasks")
    print_report(folder, summary(results, options), contents="TensorBoard's events are")


def learn(
    options: PosteriorPredictionOptions, seed: int, log_folder: Path
) -> tuple[Qualities, Qualities]:
    """Of the first task, right after it was learned, and of all tasks together at the end."""
    method = STRUCTURES[options.structure]
    variance = "prior_variance" if method == "prior-ewc" else "prior_ewc_kron_variance"
    common: dict[str, Any] = {
        "scenario": "task",
        "methods": (method,),
        "hidden": options.hidden,
        "iterations": options.iterations,
        f"{method.replace('-', '_')}_lambda": options.prior_ewc_lambda,
        variance: options.prior_variance,
    }
    settings: Options
    if options.data == "mnist":
        require_mnist(options.dataset_root)
        settings = split_mnist.SplitMNISTOptions(**common, dataset_root=options.dataset_root)
        benchmark = in_memory(split_mnist.make_benchmark(settings, seed), validate=False)
    else:
        settings = split_digits.SplitDigitsOptions(**common)
        benchmark = in_memory(split_digits.make_benchmark(settings, seed), validate=False)
    RNGManager.set_random_seeds(seed)
    model = make_model(method, benchmark, settings)
    strategy = make_strategy(method, model, settings, len(benchmark.train_stream), log_folder)
    (ewc,) = (p for p in strategy.plugins if isinstance(p, PriorEWCPlugin))
    test = benchmark.test_stream
    first: Qualities = {}
    for experience in benchmark.train_stream:
        strategy.train(experience, reset_optimizer_state=True)
        if not first:
            first = judge(model, ewc.posterior, test[:1], options.n_samples)
    return first, judge(model, ewc.posterior, test, options.n_samples)


def judge(
    model: nn.Module,
    posterior: Posterior,
    stream: Sequence[CLExperience],
    n_samples: int,
) -> Qualities:
    """The quality of each method's predictions, with the task told, averaged over experiences."""
    qualities: Qualities = {}
    for method in get_args(PredictionMethod):
        accuracies, nlls = [], []
        for experience in stream:
            x, y = (t.to(next(model.parameters()).device) for t in tensors_of(experience))
            p = predict(
                model,
                posterior,
                x,
                method,
                task_label=experience.task_label,
                n_samples=n_samples,
                generator=torch.Generator().manual_seed(0),
            )
            accuracies.append((p.argmax(1) == y).double().mean())
            nlls.append(F.nll_loss(p.clamp_min(1e-30).log(), y).double())
        qualities[method] = Quality(
            100 * torch.stack(accuracies).mean().item(), torch.stack(nlls).mean().item()
        )
    return qualities


def summary(
    results: Sequence[tuple[Qualities, Qualities]], options: PosteriorPredictionOptions
) -> Table:
    """Accuracy and negative log-likelihood of each method."""
    table = Table(
        title=f"Split {options.data}, test data, task told",
        caption="accuracy in %, negative log-likelihood in nats; mean ± standard deviation over "
        f"{options.seeds} seeds",
    )
    for column in ("prediction", "first task", "NLL", "all tasks", "NLL"):
        table.add_column(column, justify="left" if column == "prediction" else "right")
    for method in get_args(PredictionMethod):
        cells = []
        for part in zip(*results, strict=True):
            cells.append(mean_and_spread([q[method].accuracy for q in part]))
            cells.append(mean_and_spread([q[method].nll for q in part]))
        table.add_row(method, *cells)
    return table


if __name__ == "__main__":
    run_command(main, PosteriorPredictionOptions, __doc__)
