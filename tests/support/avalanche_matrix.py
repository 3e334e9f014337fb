"""What becomes of our plugins beside Avalanche's, and the page that says so.

``python -m tests.support.avalanche_matrix`` writes the tables of that page.
"""

import io
import random
import re
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from avalanche.models import MultiTaskModule
from avalanche.training import JointTraining
from avalanche.training.plugins import SupervisedPlugin

from avalanche_hnet import InMemoryPlugin, PriorEWCPlugin
from avalanche_hnet.data.loader import InMemoryLoader
from tests.support.avalanche_strategies import PLUGINS, STRATEGIES
from tests.support.streams import tensors

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "avalanche-strategies.md"
TABLES = {"Strategies": STRATEGIES, "Plugins": PLUGINS}
SAME, OWN_LOADER = "same weights", "same weights, from Avalanche's own loader"


class Probe(SupervisedPlugin):
    """Looks at the loaders, and computes the posterior from single samples."""

    def __init__(self, ours=None):
        super().__init__()
        self.ours, self.from_memory, self.precision = ours, [], {}

    def before_training_iteration(self, strategy, **kwargs):
        self.from_memory.append(isinstance(strategy.dataloader, InMemoryLoader))

    def after_training_exp(self, strategy, **kwargs):
        if self.ours is None:
            return
        for name, squares in squared_gradients(strategy.model, strategy.experience).items():
            before = self.precision.get(name, squares.new_zeros(0, *squares.shape[1:]))
            new = squares.new_zeros(len(squares) - len(before), *squares.shape[1:])
            self.precision[name] = torch.cat([before, new]) + squares


def squared_gradients(model, experience):
    """Sum over an experience's samples, in evaluation mode."""
    x, y, labels = tensors(experience)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    total = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in parameters.items()}
    was_training = model.training
    model.eval()
    for i in range(len(x)):
        rest = [labels[[i]]] if isinstance(model, MultiTaskModule) else []
        loss = F.cross_entropy(model(x[[i]], *rest), y[[i]])
        gradients = torch.autograd.grad(loss, [*parameters.values()], allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient.double() ** 2
    model.train(was_training)
    return total


@dataclass
class Run:
    """A training, and what it left."""

    probe: Probe
    ewc: PriorEWCPlugin | None = None
    start: list = field(default_factory=list)
    weights: list = field(default_factory=list)
    refusal: str = ""


def run(case, *, memory=False, ewc=False):
    """Train on the whole stream, and evaluate; a refusal is noted."""
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(0)
    ours = [InMemoryPlugin()] if memory else []
    prior = PriorEWCPlugin(likelihood=case.likelihood) if ewc else None
    found = Run(Probe(prior), prior)
    ours += [prior, found.probe] if ewc else [found.probe]
    with case.environment(), redirect_stdout(io.StringIO()):
        benchmark = case.stream()
        strategy = case.build(ours)
        assert all(plugin in strategy.plugins for plugin in ours)
        found.start = copies(strategy)
        is_joint = isinstance(strategy, JointTraining)
        try:
            for part in [benchmark.train_stream] if is_joint else benchmark.train_stream:
                strategy.train(part)
        except ValueError as error:
            if not ewc:
                raise
            found.refusal = str(error)
            found.weights = copies(strategy)
            return found
        strategy.eval(benchmark.test_stream)
    found.weights = copies(strategy)
    return found


def copies(strategy):
    return [p.detach().clone() for p in strategy.model.parameters()]


def equal(first, second):
    return len(first) == len(second) and all(map(torch.equal, first, second))


def cells(case):
    """The two cells of a row, without checks."""
    memory, ewc = run(case, memory=True), run(case, ewc=True)
    return memory_cell(run(case), memory), ewc_cell(case, ewc)


def memory_cell(alone, memory):
    if not equal(alone.weights, memory.weights):
        return "other weights"
    return SAME if any(memory.probe.from_memory) else OWN_LOADER


def ewc_cell(case, ewc):
    if ewc.refusal:
        return "refused: " + ewc.refusal.replace("|", r"\|").replace("<", "").replace(">", "")
    return "runs" + (f" with `likelihood={case.likelihood!r}`" if case.likelihood else "")


def rows_of_page():
    """By table and name: the cells."""
    rows, table = {}, None
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            table = line[3:]
        if found := re.match(r"\| `(.*?)`(.*?) \| (.*?) \| (.*) \|$", line):
            name = found[1] + found[2]
            rows[table, name] = found[3], found[4]
    return rows


def table(heading):
    """The lines of a table; rows that cannot be made here stay as they are."""
    known = rows_of_page()
    lines = ["| | `InMemoryPlugin` | `PriorEWCPlugin` |", "|---|---|---|"]
    for name in sorted(TABLES[heading]):
        case = TABLES[heading][name]
        memory, ewc = known[heading, name] if case.missing else cells(case)
        word, comma, rest = name.partition(",")
        lines.append(f"| `{word}`{comma}{rest} | {memory} | {ewc} |")
    return "\n".join(lines)


def write():
    text = PAGE.read_text()
    for heading in TABLES:
        pattern = rf"(?<=## {heading}\n\n)(?:\|.*\n)*"
        text = re.sub(pattern, lambda _, heading=heading: table(heading) + "\n", text)
    PAGE.write_text(text)


if __name__ == "__main__":
    write()
