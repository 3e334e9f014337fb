"""Tell Gaussian modes in the plane apart, two at a time, and find out which task a sample is of.

The two-dimensional mode classification of "Posterior meta-replay for continual learning" (Henning
et al. 2021): three tasks with two of six modes each. Any network learns each task perfectly; the
question is whether its predictions tell, at test time, which task a sample comes from. Compared
are a hypernetwork, one network with PriorEWCPlugin or without protection (naive), and a network of
its own for each task (separate). Accuracy is reported with the task label given and without, and a
picture for each method shows how sure it is over the plane.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from avalanche_hnet import TaskInference
from experiments.common.command import run_command
from experiments.common.iterations import ProgressPlugin
from experiments.common.modes.entropy_figure import Panel, draw_entropy
from experiments.common.modes.learning import learn, make_benchmark
from experiments.common.modes.options import GaussianMixtureOptions
from experiments.common.modes.results import ModeResult, summarized, summary
from experiments.common.parts import Run
from experiments.common.run_folder import print_report, say_finished, write_json


def main(options: GaussianMixtureOptions) -> Path:
    """Learn with all methods and seeds, draw, and print a table; return the run's folder."""
    torch.set_num_threads(1)  # such small networks are slower with more
    kept = Run.begin(options, f"gaussian-mixture-{options.scenario}")
    folder = kept.folder
    results: list[ModeResult] = []
    total = len(options.methods) * options.seeds * 3 * options.iterations
    with tqdm(total=total, disable=None) as progress:
        for method in options.methods:
            for seed in range(options.seeds):
                progress.set_description(f"{method}, seed {seed}")
                name = f"{method}/seed{seed}"
                picture = folder / "parts" / f"{name}.png"
                logs = folder / "tensorboard" / name
                entries = kept.find(name, logs)
                if entries is None:
                    result, inference = learn(method, options, seed, logs, ProgressPlugin(progress))
                    picture.parent.mkdir(parents=True, exist_ok=True)
                    draw(result, inference, options).savefig(picture, dpi=150)
                    kept.keep(name, result)
                else:
                    result = ModeResult(**entries)
                    progress.update(3 * options.iterations)
                results.append(result)
                write_json(summarized(results, options), folder / "summary.json")
                say_finished(f"{method}, seed {seed}: {result}")
            shown = _median([result for result in results if result.method == method])
            picture = folder / "parts" / method / f"seed{shown.seed}.png"
            shutil.copyfile(picture, folder / f"entropy-{method}.png")
    print_report(folder, summary(results, options))
    return folder


def draw(result: ModeResult, inference: dict[str, Any], options: GaussianMixtureOptions) -> Figure:
    """How sure the method is over the plane, under each task and after inference."""
    benchmark = make_benchmark(options)
    method, panels = result.method, []
    if options.is_told_tasks(method):
        by_entropy = inference | {"criterion": "entropy"}  # one task needs no draws to choose it
        panels = [
            Panel(TaskInference(**by_entropy | {"tasks": (task,)}), f"told it is task {task}", task)
            for task in range(len(benchmark.means))
        ]
    if options.infers_tasks(method):
        least = {"entropy": "lowest entropy", "confidence": "highest confidence"}
        how = least.get(options.criterion, "best agreement")
        panels.append(Panel(TaskInference(**inference), f"after inference: {how} over tasks"))
    if not options.is_told_tasks(method):
        panels.append(Panel(TaskInference(**inference), "one head, no task needed"))
    one_of_six = options.scenario == "class" and not options.is_told_tasks(method)
    title = f"{method}, {options.scenario} scenario, seed {result.seed}\n{result}"
    return draw_entropy(benchmark, panels, title, 6 if one_of_six else 2)


def _median(results: list[ModeResult]) -> ModeResult:
    """The seed in the middle, by the accuracy that the figure is about."""

    def accuracy(result: ModeResult) -> float:
        shown = result.given if result.not_given is None else result.not_given
        assert shown is not None
        return shown

    return sorted(results, key=accuracy)[(len(results) - 1) // 2]


if __name__ == "__main__":
    run_command(main, GaussianMixtureOptions, __doc__)
