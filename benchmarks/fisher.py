"""What the empirical Fisher costs, in forward and backward passes over the same data.

The single-sample loop and ``vmap`` are timed on one batch and scaled to all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro
from backpack import backpack, extend
from backpack.extensions import SumGradSquared
from rich.console import Console
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from avalanche_hnet import diagonal_fisher
from benchmarks.timing import ratio_table, run_in_turn

PASS = "one pass"
Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class FisherBenchmark:
    """Settings of the timing."""

    batch_size: int = 128
    """Samples per batch."""
    batches: int = 16
    """Number of batches."""
    repeats: int = 9
    """Rounds, of which the table shows median, minimum and maximum."""


def mlp() -> nn.Sequential:
    """784-400-400-10."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 400),
        nn.ReLU(),
        nn.Linear(400, 400),
        nn.ReLU(),
        nn.Linear(400, 10),
    )


def lenet() -> nn.Sequential:
    """LeNet-5 with ReLU and max pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def forward_and_backward(model: nn.Module, batches: Batches) -> None:
    """What an epoch of training costs without its optimizer."""
    for x, y in batches:
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()


def with_backpack(model: nn.Module, loss: nn.Module, batches: Batches) -> None:
    """BackPACK's sum of squared per-sample gradients."""
    for x, y in batches:
        model.zero_grad()
        with backpack(SumGradSquared()):
            loss(model(x), y).backward()


def one_by_one(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """Every sample on its own."""
    parameters = list(model.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    for x, y in zip(batch[0].split(1), batch[1].split(1), strict=True):
        gradients = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), parameters)
        for t, g in zip(total, gradients, strict=True):
            t += g.square()


def with_vmap(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """Per-sample gradients of the whole batch at once."""
    parameters = {n: p.detach() for n, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, parameters, x[None]), y[None])

    for g in vmap(grad(loss), in_dims=(None, 0, 0))(parameters, *batch).values():
        g.square().sum(0)


def compare(name: str, make_model: Callable[[], nn.Sequential], options: FisherBenchmark) -> None:
    """Print the table of one model."""
    torch.manual_seed(0)
    model = make_model()
    extended, loss = extend(make_model()), extend(nn.CrossEntropyLoss(reduction="sum"))
    batches = [
        (torch.randn(options.batch_size, 1, 28, 28), torch.randint(10, (options.batch_size,)))
        for _ in range(options.batches)
    ]
    functions: dict[str, Callable[[], object]] = {
        PASS: lambda: forward_and_backward(model, batches),
        "diagonal_fisher": lambda: diagonal_fisher(model, batches),
        "BackPACK": lambda: with_backpack(extended, loss, batches),
        "vmap": lambda: with_vmap(model, batches[0]),
        "single-sample loop": lambda: one_by_one(model, batches[0]),
    }
    seconds = run_in_turn(functions, options.repeats)
    for name_of_slow in ("vmap", "single-sample loop"):
        seconds[name_of_slow] = [options.batches * s for s in seconds[name_of_slow]]
    title = f"{name}, {options.batches} batches of {options.batch_size}, one thread"
    Console().print(ratio_table(seconds, PASS, title))


def main(options: FisherBenchmark) -> None:
    """Print a table for each model."""
    torch.set_num_threads(1)
    compare("MLP 784-400-400-10", mlp, options)
    compare("LeNet", lenet, options)


if __name__ == "__main__":
    main(tyro.cli(FisherBenchmark, description=__doc__))
