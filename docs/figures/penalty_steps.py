"""Implicit against gradient steps of the penalty, for six optimizers and seven strengths λ.

Makes the table of docs/explanation/penalty-steps.md, to be put in there by hand, in half an hour:

    python docs/figures/penalty_steps.py

With --held-out, the table is of training samples that are not trained on, by which defaults were
chosen. What has been measured is kept in a file of JSON lines, and not measured again.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from math import nan
from pathlib import Path
from statistics import mean, stdev

import torch
from avalanche.benchmarks import CLScenario, SplitMNIST
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.models import MTSimpleMLP
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from avalanche_hnet import InMemoryPlugin, PriorEWCPlugin

TABLE = Path("penalty-steps.md")
OPTIMIZERS = {
    "SGD 0.01": (SGD, {"lr": 0.01}),
    "SGD 0.1": (SGD, {"lr": 0.1}),
    "SGD 0.1, momentum 0.9": (SGD, {"lr": 0.1, "momentum": 0.9}),
    "Adam 0.001": (Adam, {"lr": 1e-3}),
    "AdamW 0.001": (AdamW, {"lr": 1e-3}),
    "RMSprop 0.001": (RMSprop, {"lr": 1e-3}),
}
STRENGTHS = [10**k for k in range(7)]
KINDS = ("implicit", "gradient")
N_TRAINED = 6000

Setting = tuple[str, str, int]
"""An optimizer, a kind of step and λ."""


def main() -> None:
    """Measure what is missing, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--optimizers", nargs="+", default=[*OPTIMIZERS], choices=[*OPTIMIZERS])
    parser.add_argument("--kinds", nargs="+", default=[*KINDS], choices=KINDS)
    parser.add_argument("--strengths", type=int, nargs="+", default=STRENGTHS)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--results", type=Path, default=Path("penalty_steps.jsonl"))
    parser.add_argument("--table", type=Path, default=TABLE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    accuracies = dict(measured(options.results))
    benchmark = SplitMNIST(
        5,
        return_task_id=True,
        class_ids_from_zero_in_each_exp=True,
        fixed_class_order=[*range(10)],
    )
    for seed, optimizer, strength, kind in product(
        options.seeds, options.optimizers, options.strengths, options.kinds
    ):
        key = ((optimizer, kind, strength), seed)
        if key not in accuracies:
            accuracies[key] = accuracy(benchmark, *key)
            with options.results.open("a") as file:
                print(json.dumps([*key, accuracies[key]]), file=file)
            print(*key, *(f"{value:.2f}" for value in accuracies[key]), flush=True)
    wanted = {
        key: held_out if options.held_out else test for key, (test, held_out) in accuracies.items()
    }
    options.table.write_text("\n".join(table(wanted)) + "\n")


def measured(path: Path) -> Iterator[tuple[tuple[Setting, int], tuple[float, float]]]:
    """By setting and seed."""
    for line in path.read_text().splitlines() if path.exists() else ():
        (optimizer, kind, strength), seed, (test, held_out) = json.loads(line)
        yield ((optimizer, kind, strength), seed), (test, held_out)


def accuracy(benchmark: CLScenario, setting: Setting, seed: int) -> tuple[float, float]:
    """Means over the five tasks after the last, in percent; NaN if the loss becomes infinite.

    Of test data, and of training samples that are not trained on.
    """
    optimizer, kind, strength = setting
    torch.manual_seed(seed)
    model = MTSimpleMLP(input_size=784, hidden_size=100)
    plugin = PriorEWCPlugin(float(strength), penalty_step=kind)
    strategy = Naive(
        model=model,
        optimizer=optimizer_of(optimizer, model),
        train_mb_size=64,
        train_epochs=2,
        eval_mb_size=512,
        plugins=[InMemoryPlugin(), plugin],
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True), loggers=[]),
    )
    held_out = []
    for task, whole in enumerate(benchmark.train_stream):
        order = torch.randperm(len(whole.dataset), generator=torch.Generator().manual_seed(seed))
        trained, others = (
            with_samples(benchmark, task, rows.tolist())
            for rows in order.split_with_sizes([N_TRAINED, len(order) - N_TRAINED])
        )
        held_out.append(others)
        try:
            strategy.train(trained)
        except ValueError as error:
            if "not finite" not in str(error):
                raise
            return nan, nan
    return evaluated(strategy, benchmark.test_stream), evaluated(strategy, held_out)


def evaluated(strategy: Naive, experiences: Sequence[object]) -> float:
    """Mean accuracy of five tasks, in percent."""
    evaluator = EvaluationPlugin(accuracy_metrics(experience=True), loggers=[])
    strategy.plugins[strategy.plugins.index(strategy.evaluator)] = evaluator
    strategy.evaluator = evaluator
    results = strategy.eval(experiences)
    values = [value for name, value in results.items() if "Top1_Acc_Exp" in name]
    assert len(values) == 5
    return 100 * mean(values)


def with_samples(benchmark: CLScenario, task: int, rows: list[int]) -> object:
    """An experience of the training stream with some of its samples."""
    experience = benchmark.train_stream[task]
    experience.dataset = experience.dataset.subset(rows)
    return experience


def optimizer_of(name: str, model: nn.Module) -> Optimizer:
    """A new one."""
    kind, options = OPTIMIZERS[name]
    return kind(model.parameters(), **options)


def table(accuracies: dict[tuple[Setting, int], float]) -> Iterable[str]:
    """Markdown, a line for each optimizer and kind of step."""
    by_setting: dict[Setting, list[float]] = defaultdict(list)
    for (setting, _), value in accuracies.items():
        by_setting[setting].append(value)
    yield "| Optimizer | Step | " + " | ".join(f"λ = {s:,}" for s in STRENGTHS) + " |"
    yield "|---|---|" + "---:|" * len(STRENGTHS)
    for optimizer in OPTIMIZERS:
        for kind in KINDS:
            values = [by_setting[optimizer, kind, strength] for strength in STRENGTHS]
            best = max((mean(v) for v in values if v and mean(v) > 0), default=nan)
            yield f"| {optimizer} | {kind} | " + " | ".join(cell(v, best) for v in values) + " |"


def cell(values: list[float], best: float) -> str:
    """Mean ± standard deviation over the seeds, and the best of a line in bold."""
    finite = [v for v in values if v == v]
    if not values:
        return ""
    if len(finite) < len(values):
        return "diverges"
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    text = f"{mean(values):.1f}{spread}"
    return f"**{text}**" if mean(values) == best else text


if __name__ == "__main__":
    main()
