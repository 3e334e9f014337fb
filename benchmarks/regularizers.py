"""What the regularisers of a hypernetwork cost, value and gradient, for more and more tasks.

On a main network of 141 weights, against hypnettorch: its fix-target regulariser, whose targets are
stored, and the loop over all outputs by which its authors evaluated the Jacobian one. On a main
network 784-400-400-2 with chunks, against the direct form on all tasks at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import tyro
from hypnettorch.hnets import HMLP
from hypnettorch.utils.hnet_regularizer import calc_fix_target_reg, get_current_targets
from rich.console import Console
from torch import nn

from avalanche_hnet import (
    ChunkedHyperNetwork,
    FixedTarget,
    HyperNetwork,
    Jacobian,
    ValuePreserving,
)
from avalanche_hnet.core.regularizers import Experience, OutputRegularizer, Penalty
from benchmarks.timing import ratio_table, repeated, run_in_turn

SMALL, LARGE = (1, 10, 10, 1), (784, 400, 400, 2)
Function = Callable[[], object]


@dataclass(frozen=True)
class RegularizersBenchmark:
    """Settings of the timing."""

    repeats: int = 9
    """Rounds, of which the tables show median, minimum and maximum."""


def mlp(sizes: tuple[int, ...]) -> nn.Sequential:
    """A main network of these widths."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def hypernetwork(sizes: tuple[int, ...], n_tasks: int) -> HyperNetwork:
    """With chunks of 42,000 and hidden layers of 10 and 10 for the large main network."""
    torch.manual_seed(0)
    if sizes == SMALL:
        network = HyperNetwork(mlp(SMALL), embedding_dim=2, hidden=(10, 10))
    else:
        network = ChunkedHyperNetwork(
            mlp(LARGE),
            chunk_size=42_000,
            chunk_embedding_dim=96,
            embedding_dim=96,
            hidden=(10, 10),
        )
    for _ in range(n_tasks):
        network.add_task()
    return network


def after_a_step(
    regularizer: OutputRegularizer, network: HyperNetwork, n_tasks: int
) -> Callable[[], Penalty]:
    """The penalty of a hypernetwork that has left its starting point, for a step Δθ.

    The numbers are the same in every precision.
    """
    regularizer.before_experience(network, Experience(tuple(range(n_tasks)), n_samples=1))
    generator = torch.Generator().manual_seed(1)
    theta = network.shared_parameters()
    with torch.no_grad():
        for p in theta.values():
            p.copy_((p.float() + 1e-2 * torch.randn(p.shape, generator=generator)).to(p))
    step = {n: (1e-3 * torch.randn(p.shape, generator=generator)).to(p) for n, p in theta.items()}
    return lambda: regularizer.penalty(theta, step)


def authors_network(n_tasks: int) -> HMLP:
    """Like the small hypernetwork."""
    shapes = [list(p.shape) for p in mlp(SMALL).parameters()]
    return HMLP(shapes, cond_in_size=2, layers=(10, 10), num_cond_embs=n_tasks + 1, verbose=False)


def authors_fixed_target(n_tasks: int) -> Function:
    """A loop over tasks."""
    network = authors_network(n_tasks)
    targets = get_current_targets(n_tasks, network)
    step = [1e-3 * torch.randn_like(p) for p in network.unconditional_params]

    def run() -> None:
        network.zero_grad()
        calc_fix_target_reg(network, n_tasks, targets=targets, dTheta=step).backward()

    return run


def authors_jacobian(n_tasks: int) -> Function:
    """A loop over tasks and outputs: the gradient of each output, times Δθ."""
    network = authors_network(n_tasks)
    theta = list(network.unconditional_params)
    step = [1e-3 * torch.randn_like(p) for p in theta]

    def run() -> None:
        network.zero_grad()
        total = torch.zeros(())
        for task in range(n_tasks):
            for output in network.forward(cond_id=task, ret_format="flattened").flatten():
                row = torch.autograd.grad(output, theta, create_graph=True)
                products = [(g * d).sum() for g, d in zip(row, step, strict=True)]
                total = total + torch.stack(products).sum() ** 2
        (total / n_tasks).backward()

    return run


def all_tasks_at_once(network: HyperNetwork, n_tasks: int) -> Function:
    """Fix-target in its plain form: (T, W) weights and targets."""
    with torch.no_grad():
        targets = network(range(n_tasks))
    theta = list(network.shared_parameters().values())

    def run() -> None:
        value = (network(range(n_tasks)) - targets).square().sum() / n_tasks
        torch.autograd.grad(value, theta)

    return run


def with_fisher(network: HyperNetwork, n_tasks: int) -> FixedTarget:
    """Fix-target with Fisher weights for each task."""
    regularizer = FixedTarget(fisher_weights=True)
    fisher = {str(task): torch.rand(network.layout.n_weights) for task in range(n_tasks)}
    regularizer.load_state_dict({**regularizer.state_dict(), "fisher": fisher})
    return regularizer


def gradient_error(kind: Callable[[], OutputRegularizer], n_tasks: int) -> float:
    """Relative error of the float32 gradient to that in float64."""
    exact, rounded = (
        torch.cat([g.flatten().double() for g in run().gradients.values()])
        for dtype in (torch.float64, torch.float32)
        for run in [after_a_step(kind(), hypernetwork(LARGE, n_tasks).to(dtype), n_tasks)]
    )
    return float((rounded - exact).norm() / exact.norm())


def main(options: RegularizersBenchmark) -> None:
    """Print all tables."""
    torch.set_num_threads(1)
    console = Console()

    def show(title: str, reference: str, functions: dict[str, Function], repeats: int) -> None:
        loops = {name: repeated(function, 0.02) for name, function in functions.items()}
        seconds = run_in_turn({name: run for name, (run, _) in loops.items()}, repeats)
        seconds = {n: [s / loops[n][1] for s in times] for n, times in seconds.items()}
        console.print(ratio_table(seconds, reference, f"{title}, one thread"))

    for n_tasks in (2, 10, 50):
        network = hypernetwork(SMALL, n_tasks)
        functions: dict[str, Function] = {
            "stored targets": after_a_step(FixedTarget(targets="stored"), network, n_tasks),
            "recomputed targets": after_a_step(FixedTarget(), network, n_tasks),
            "hypnettorch": authors_fixed_target(n_tasks),
        }
        title = f"fix-target, 141 outputs, {n_tasks} tasks"
        show(title, "stored targets", functions, options.repeats)
    for n_tasks in (2, 10, 50):
        functions = {
            "Jacobian": after_a_step(Jacobian(), hypernetwork(SMALL, n_tasks), n_tasks),
            "loop over outputs": authors_jacobian(n_tasks),
        }
        show(
            f"Jacobian, 141 outputs, {n_tasks} tasks",
            "Jacobian",
            functions,
            min(3, options.repeats),
        )

    kinds: dict[str, Callable[[], OutputRegularizer]] = {
        "fix-target": FixedTarget,
        "Jacobian": Jacobian,
        "value-preserving": ValuePreserving,
    }
    for name, kind in kinds.items():
        functions = {
            f"{n} tasks": after_a_step(kind(), hypernetwork(LARGE, n), n) for n in (2, 10, 100)
        }
        title = f"{name}, 475,202 outputs, quadratic form"
        show(title, "2 tasks", functions, options.repeats)
        errors = ", ".join(f"{gradient_error(kind, n):.1e} ({n} tasks)" for n in (2, 100))
        console.print(f"relative error of its gradient in float32: {errors}\n")
    functions = {
        "quadratic form": after_a_step(FixedTarget(), hypernetwork(LARGE, 100), 100),
        "direct form": after_a_step(FixedTarget(form="direct"), hypernetwork(LARGE, 100), 100),
        "all tasks at once": all_tasks_at_once(hypernetwork(LARGE, 100), 100),
    }
    show("fix-target, 475,202 outputs, 100 tasks", "quadratic form", functions, 3)
    network = hypernetwork(LARGE, 10)
    functions = {
        "quadratic form": after_a_step(FixedTarget(), hypernetwork(LARGE, 10), 10),
        "with Fisher weights": after_a_step(with_fisher(network, 10), network, 10),
    }
    show("fix-target, 475,202 outputs, 10 tasks", "quadratic form", functions, options.repeats)


if __name__ == "__main__":
    main(tyro.cli(RegularizersBenchmark, description=__doc__))
