"""Tell Gaussian modes in the plane apart, two at a time, and find out which task a sample is of.

The two-dimensional mode classification of "Posterior meta-replay for continual learning" (Henning
et al. 2021): three tasks with two of six modes each. Any network learns each task perfectly; the
question is whether its predictions tell, at test time, which task a sample comes from. Compared
are a hypernetwork, one network with PriorEWCPlugin or without protection (naive), and a network of
its own for each task (separate). Accuracy is reported with the task label given and without, and a
picture for each method shows how sure it is over the plane.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from avalanche_hnet import TaskInference
from experiments.entropy_figure import Panel, draw_entropy
from experiments.iterations import ProgressPlugin
from experiments.mode_learning import ModeResult, learn, make_benchmark
from experiments.mode_options import GaussianMixtureOptions, ModeMethod
from experiments.options import Head
from experiments.results import mean_and_spread

# In the class scenario, by the authors' README (probabilistic/prob_gmm): with the task label given
# and without, the task inferred by entropy. Deterministic networks, and online EWC.
PUBLISHED: dict[tuple[ModeMethod, Head], str] = {
    ("hypernet", "separate"): "100 / 45",
    ("separate", "separate"): "100 / 71",
    ("naive", "separate"): "99.9 / 48",
    ("prior-ewc", "growing"): "- / 50",
    ("prior-ewc", "fixed"): "- / 67",
}


def main(options: GaussianMixtureOptions) -> Path:
    """Learn with all methods and seeds, draw, and print a table; return the run's folder."""
    torch.set_num_threads(1)  # such small networks are slower with more
    name = f"gaussian-mixture-{options.scenario}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = options.output / name
    folder.mkdir(parents=True)
    results: list[ModeResult] = []
    total = len(options.methods) * options.seeds * 3 * options.iterations
    with tqdm(total=total, disable=None) as progress:
        for method in options.methods:
            learned = []
            for seed in range(options.seeds):
                progress.set_description(f"{method}, seed {seed}")
                logs = folder / "tensorboard" / method / f"seed{seed}"
                learned.append(learn(method, options, seed, logs, ProgressPlugin(progress)))
            results += [result for result, _ in learned]
            figure = draw(*_median(learned), options)
            figure.savefig(folder / f"entropy-{method}.png", dpi=150)
    write_json(results, options, folder / "summary.json")
    console = Console()
    console.print(summary(results, options))
    console.print(f"Everything is in {folder.resolve()}", soft_wrap=True)
    return folder


def draw(result: ModeResult, inference: dict[str, Any], options: GaussianMixtureOptions) -> Figure:
    """How sure the method is over the plane, under each task and after inference."""
    benchmark = make_benchmark(options)
    method, found = result.method, []
    if options.is_told_tasks(method):
        by_entropy = inference | {"criterion": "entropy"}  # one task needs no draws to choose it
        found = [
            Panel(TaskInference(**by_entropy | {"tasks": (task,)}), f"told it is task {task}", task)
            for task in range(len(benchmark.means))
        ]
    if options.infers_tasks(method):
        least = {"entropy": "lowest entropy", "confidence": "highest confidence"}
        how = least.get(options.criterion, "best agreement")
        found.append(Panel(TaskInference(**inference), f"after inference: {how} over tasks"))
    if not options.is_told_tasks(method):
        found.append(Panel(TaskInference(**inference), "one head, no task needed"))
    one_of_six = options.scenario == "class" and not options.is_told_tasks(method)
    correct = {"with the task given": result.given, "without task label": result.not_given}
    title = f"{method}, {options.scenario} scenario, seed {result.seed}\n" + ", ".join(
        f"{value:.0f} % correct {how}" for how, value in correct.items() if value is not None
    )
    return draw_entropy(benchmark, found, title, 6 if one_of_six else 2)


def summary(results: Sequence[ModeResult], options: GaussianMixtureOptions) -> Table:
    """Mean and spread over seeds of the accuracies of each method."""
    is_class = options.scenario == "class"
    table = Table(
        title=f"Gaussian mixture, {options.scenario} scenario, final accuracy in %",
        caption=f"mean ± standard deviation over the seeds 0 to {options.seeds - 1}"
        if options.seeds > 1
        else None,
    )
    table.add_column("method")
    for column in ("task given", "not given", "tasks found"):
        table.add_column(column, justify="right", no_wrap=True)
    if is_class:
        table.add_column("paper", justify="right", no_wrap=True)
    for method in options.methods:
        group = [r for r in results if r.method == method]
        cells = [
            mean_and_spread([v for r in group if (v := getattr(r, name)) is not None])
            if getattr(group[0], name) is not None
            else "-"
            for name in ("given", "not_given", "tasks")
        ]
        has_heads = method in ("prior-ewc", "naive")
        head: Head = options.head if has_heads else "separate"
        label = f"{method}, {head}" if is_class and has_heads else method
        published = [PUBLISHED.get((method, head), "-")] if is_class else []
        table.add_row(label, *cells, *published)
    return table


def write_json(results: Sequence[ModeResult], options: GaussianMixtureOptions, path: Path) -> None:
    """Settings, the accuracies of each seed, and their means and standard deviations."""
    versions = {p: version(p) for p in ("avalanche-hnet", "avalanche-lib", "torch")}
    methods: dict[str, Any] = {}
    for method in options.methods:
        group = [r for r in results if r.method == method]
        methods[method] = {"results": [asdict(r) for r in group]}
        for name in ("given", "not_given", "tasks"):
            values = [v for r in group if (v := getattr(r, name)) is not None]
            methods[method][name] = mean(values) if values else None
            methods[method][f"{name}_std"] = stdev(values) if len(values) > 1 else None
    content = {"settings": asdict(options) | {"versions": versions}, "methods": methods}
    path.write_text(json.dumps(content, indent=2, default=str) + "\n")


def _median(
    learned: list[tuple[ModeResult, dict[str, Any]]],
) -> tuple[ModeResult, dict[str, Any]]:
    """The seed in the middle, by the accuracy that the figure is about."""

    def accuracy(entry: tuple[ModeResult, dict[str, Any]]) -> float:
        result = entry[0]
        found = result.given if result.not_given is None else result.not_given
        assert found is not None
        return found

    return sorted(learned, key=accuracy)[(len(learned) - 1) // 2]


if __name__ == "__main__":
    main(tyro.cli(GaussianMixtureOptions, description=__doc__))
