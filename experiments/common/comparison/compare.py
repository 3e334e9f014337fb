"""Train every method on a stream and report on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from avalanche.benchmarks import CLScenario
from tqdm import tqdm

from experiments.common.comparison.learning import learn
from experiments.common.comparison.matrices_figure import draw_matrices
from experiments.common.comparison.options import Options, OptionsT, with_strengths
from experiments.common.comparison.results import Result, by_scenario, write_results
from experiments.common.comparison.tables import inference_table, scenarios_table, summary_table
from experiments.common.in_memory import in_memory
from experiments.common.parts import Run
from experiments.common.run_folder import print_report, say_finished


def compare(
    make_benchmark: Callable[[OptionsT, int], CLScenario],
    options: OptionsT,
    *,
    new_classes: int = 0,
) -> Path:
    """Run all scenarios, seeds and methods, write the report and print its tables.

    Args:
        make_benchmark: makes the benchmark of a scenario's options and a seed.
        options: of the comparison.
        new_classes: in the class scenario, added to the class labels of each experience once more
            than to the last.

    Returns:
        The run's folder: TensorBoard events, ``results.csv`` and ``summary.json`` of what has been
        learned so far, and in the end a picture ``matrices-SCENARIO.png`` of each scenario.
    """
    kept = Run.begin(options, f"{options.experiment}-{options.scenario}")
    folder = kept.folder
    runs = [with_strengths(of_scenario) for of_scenario in options.by_scenario()]
    settings = {str(run.scenario): asdict(run) for run in runs}
    n_parts = sum(run.seeds * len(run.methods) for run in runs)
    results: list[Result] = []
    with tqdm(total=n_parts, disable=None) as progress:
        for run in runs:
            logs = folder / "tensorboard" / (run.scenario if len(runs) > 1 else "")
            for seed in range(run.seeds):
                benchmark = None
                for method in run.methods:
                    part = f"{run.scenario}, {method}, seed {seed}"
                    progress.set_description(part)
                    name, log_folder = f"{method}/seed{seed}", logs / method / f"seed{seed}"
                    entries = kept.find(f"{run.scenario}/{name}", log_folder)
                    if entries is None:
                        benchmark = benchmark or in_memory(
                            make_benchmark(run, seed),
                            validate=run.validate,
                            new_classes=new_classes if run.scenario == "class" else 0,
                        )
                        result = learn(method, benchmark, run, seed, log_folder)
                        kept.keep(f"{run.scenario}/{name}", result)
                    else:
                        result = Result(**entries)
                    results.append(result)
                    write_results(results, settings, folder)
                    progress.update()
                    done = f"{len(results)} of {n_parts}"
                    before = "" if entries is None else ", finished before"
                    say_finished(f"{part}: {result.average:.2f} % on average ({done}{before})")
    _report(results, options, folder)
    return folder


def _report(results: Sequence[Result], options: Options, folder: Path) -> None:
    """Draw the pictures and print the tables."""
    data = "held-out training data" if options.validate else "test data"
    seeds = "seed 0" if options.seeds == 1 else f"seeds 0 to {options.seeds - 1}"
    tables = []
    for scenario, group in by_scenario(results).items():
        title = f"{options.experiment}, {scenario}-incremental, {seeds}, {data}"
        draw_matrices(group, title, folder / f"matrices-{scenario}.png")
        tables.append(summary_table(group, title))
        if any(result.inference for result in group):
            tables.append(inference_table(group, title))
    if options.scenario == "all":
        tables.append(scenarios_table(results, f"{options.experiment}, {seeds}, {data}"))
    print_report(folder, *tables)
