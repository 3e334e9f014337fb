"""How much λ matters: a diagonal posterior against a Kronecker-factored one.

Draws docs/explanation/kronecker.png, from Permuted MNIST with ten tasks, in about half an hour:

    python docs/figures/kronecker.py

What has been measured is kept in a file of JSON lines, and not measured again.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

import torch
from matplotlib.figure import Figure

from experiments.common.comparison.learning import learn
from experiments.common.in_memory import in_memory
from experiments.permuted_mnist import PermutedMNISTOptions, make_benchmark

PICTURE = Path(__file__).parents[1] / "explanation" / "kronecker.png"
METHODS = {"prior-ewc": "diagonal", "prior-ewc-kron": "Kronecker-factored"}
STRENGTHS = [0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]

Run = tuple[str, float, int]
"""A method, λ and a seed."""


def main() -> None:
    """Measure what is missing, print a table and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=[*METHODS])
    parser.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--results", type=Path, default=Path("kronecker.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    accuracies = dict(measured(options.results))
    for seed, strength, method in product(options.seeds, options.strengths, options.methods):
        run = (method, strength, seed)
        if run not in accuracies:
            accuracies[run] = accuracy(run, options.held_out)
            with options.results.open("a") as file:
                print(json.dumps([*run, accuracies[run]]), file=file)
            print(*run, f"{accuracies[run]:.2f}", flush=True)
    for line in table(accuracies):
        print(line)
    draw(accuracies).savefig(PICTURE, dpi=150)


def measured(path: Path) -> Iterator[tuple[Run, float]]:
    """Accuracies by run."""
    for line in path.read_text().splitlines() if path.exists() else ():
        method, strength, seed, value = json.loads(line)
        yield (method, strength, seed), value


def accuracy(run: Run, held_out: bool) -> float:
    """Mean over the ten tasks after the last, in percent, of test data or held-out samples."""
    method, strength, seed = run
    options = PermutedMNISTOptions(
        methods=(method,),
        hidden=(256, 256),
        prior_variance=1.0,
        prior_ewc_lambda=strength,
        prior_ewc_kron_lambda=strength,
        validate=held_out,
    )
    benchmark = in_memory(make_benchmark(options, seed), validate=held_out)
    with TemporaryDirectory() as folder:
        return learn(method, benchmark, options, seed, Path(folder)).average


def by_strength(accuracies: dict[Run, float], method: str) -> dict[float, float]:
    """Means over seeds of a method, by λ in order."""
    values: dict[float, list[float]] = defaultdict(list)
    for (name, strength, _), value in accuracies.items():
        if name == method:
            values[strength].append(value)
    return {strength: mean(values[strength]) for strength in sorted(values)}


def table(accuracies: dict[Run, float]) -> Iterable[str]:
    """Markdown, a line for each structure."""
    yield "| λ | " + " | ".join(f"{s:g}" for s in STRENGTHS) + " |"
    yield "|---|" + "---:|" * len(STRENGTHS)
    for method, name in METHODS.items():
        values = by_strength(accuracies, method)
        cells = (f"{values[s]:.1f}" if s in values else "" for s in STRENGTHS)
        yield f"| {name} | " + " | ".join(cells) + " |"


def draw(accuracies: dict[Run, float]) -> Figure:
    """Accuracy against λ, with the range that is within a point of the best."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    ax = figure.subplots()
    for method, name in METHODS.items():
        values = by_strength(accuracies, method)
        (line,) = ax.semilogx(*zip(*values.items(), strict=True), "o-", markersize=4, label=name)
        best = max(values.values())
        near = [s for s, value in values.items() if value >= best - 1]
        ax.hlines(best - 1, min(near), max(near), color=line.get_color(), alpha=0.4, linewidth=6)
    ax.set_xlabel("λ")
    ax.set_ylabel("accuracy after ten tasks in %")
    ax.grid(alpha=0.3)
    ax.legend()
    return figure


if __name__ == "__main__":
    main()
