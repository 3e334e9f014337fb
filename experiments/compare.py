"""Train every method on a stream and report on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from avalanche.benchmarks import CLScenario
from avalanche.training.determinism.rng_manager import RNGManager
from rich.console import Console
from torch import nn
from tqdm import tqdm

from experiments.figures import draw_matrices
from experiments.in_memory import in_memory
from experiments.methods import make_strategy
from experiments.networks import mlp
from experiments.options import Method, Options
from experiments.results import Result, summary_table, write_csv, write_json


def compare(
    name: str,
    make_benchmark: Callable[[int], CLScenario],
    options: Options,
    *,
    new_classes: int = 0,
) -> Path:
    """Run all methods and seeds, write the report and print its table.

    Args:
        name: of the experiment, for its folder and titles.
        make_benchmark: makes the benchmark of a seed.
        options: with both strengths given.
        new_classes: added to the class labels of each experience once more than to the last.

    Returns:
        The run's folder: TensorBoard events, ``results.csv``, ``summary.json``, ``matrices.png``.
    """
    folder = options.output / f"{name}-{options.scenario}-{datetime.now():%Y%m%d-%H%M%S}"
    folder.mkdir(parents=True)
    results = []
    with tqdm(total=options.seeds * len(options.chosen_methods), disable=None) as progress:
        for seed in range(options.seeds):
            benchmark = in_memory(
                make_benchmark(seed), validate=options.validate, new_classes=new_classes
            )
            for method in options.chosen_methods:
                progress.set_description(f"{method}, seed {seed}")
                log_folder = folder / "tensorboard" / method / f"seed{seed}"
                results.append(train(method, benchmark, options, seed, log_folder))
                progress.update()

    data = "held-out training data" if options.validate else "test data"
    title = f"{name}, {options.scenario}-incremental, seeds 0 to {options.seeds - 1}, {data}"
    write_csv(results, folder / "results.csv")
    versions = {p: version(p) for p in ("avalanche-hnet", "avalanche-lib", "torch")}
    write_json(results, asdict(options) | {"versions": versions}, folder / "summary.json")
    draw_matrices(results, title, folder / "matrices.png")
    console = Console()
    console.print(summary_table(results, title))
    console.print(f"Everything is in {folder.resolve()}", soft_wrap=True)
    return folder


def train(
    method: Method, benchmark: CLScenario, options: Options, seed: int, log_folder: Path
) -> Result:
    """Accuracies of one method after each experience (of joint training, after all)."""
    RNGManager.set_random_seeds(seed)
    stream = benchmark.train_stream
    x, *_ = stream[0].dataset[0]
    n_classes = 1 + max(c for e in stream for c in e.classes_in_this_experience)
    if method == "hypernet":
        n_outputs = n_classes * (len(stream) if options.hypernet.multi_head else 1)
        target = mlp("domain", x.numel(), options.hidden, n_outputs, options.dropout)
        model: nn.Module = options.hypernet.make_model(target)
    else:
        model = mlp(options.scenario, x.numel(), options.hidden, n_classes, options.dropout)
    strategy = make_strategy(method, model, options, len(stream), log_folder)
    matrix = []
    for experiences in [stream] if method == "joint" else stream:
        # Adam starts anew with each experience, as the papers have it.
        strategy.train(experiences, reset_optimizer_state=True)
        metrics = strategy.eval(benchmark.test_stream)
        prefix = "Top1_Acc_Exp/eval_phase/test_stream/"
        accuracies = {name: 100 * a for name, a in metrics.items() if name.startswith(prefix)}
        matrix.append([accuracies[name] for name in sorted(accuracies)])
    return Result(method, seed, matrix)
