"""What the regularisers of a hypernetwork cost, value and gradient, for more and more tasks.

On a main network of 141 weights, against hypnettorch: its fix-target regulariser, whose targets are
stored, and the loop over all outputs by which its authors evaluated the Jacobian one. On a main
network 784-400-400-2 with chunks, against fewer tasks and against the direct form.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypnettorch.hnets import HMLP
from hypnettorch.utils.hnet_regularizer import calc_fix_target_reg, get_current_targets

from avalanche_hnet import (
    ChunkedHyperNetwork,
    FixedTarget,
    HyperNetwork,
    Jacobian,
    ValuePreserving,
)
from avalanche_hnet.core.regularizers import Experience, OutputRegularizer, Penalty
from benchmarks.networks import mlp
from benchmarks.rows import Function, Limit, Row, in_turn
from benchmarks.timing import threads

SMALL, LARGE = (1, 10, 10, 1), (784, 400, 400, 2)
KINDS: dict[str, Callable[[], OutputRegularizer]] = {
    "fix-target": FixedTarget,
    "Jacobian": Jacobian,
    "value-preserving": ValuePreserving,
}


def hypernetwork(sizes: tuple[int, ...], n_tasks: int) -> HyperNetwork:
    """With chunks of 42,000 and hidden layers of 10 and 10 for the large main network."""
    torch.manual_seed(0)
    if sizes == SMALL:
        network = HyperNetwork(mlp(*SMALL), embedding_dim=2, hidden=(10, 10))
    else:
        network = ChunkedHyperNetwork(
            mlp(*LARGE),
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
    shapes = [list(p.shape) for p in mlp(*SMALL).parameters()]
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


def with_fisher(network: HyperNetwork, n_tasks: int) -> FixedTarget:
    """Fix-target with Fisher weights for each task."""
    regularizer = FixedTarget(fisher_weights=True)
    fisher = {str(task): torch.rand(network.layout.n_weights) for task in range(n_tasks)}
    regularizer.load_state_dict({**regularizer.state_dict(), "fisher": fisher})
    return regularizer


def rows(repeats: int) -> list[Row]:
    """Small networks against the authors' code, large ones against their own direct form."""
    timed = []
    with threads(1):
        for n_tasks in (2, 10, 50):
            suffix = f", 141 weights, {n_tasks} tasks"
            ours = after_a_step(
                FixedTarget(targets="stored"), hypernetwork(SMALL, n_tasks), n_tasks
            )
            functions: dict[str, Function] = {
                f"fix-target{suffix}": ours,
                f"hypnettorch's fix-target{suffix}": authors_fixed_target(n_tasks),
            }
            timed += in_turn("regularisers", functions, repeats=repeats)
            functions = {
                f"Jacobian{suffix}": after_a_step(
                    Jacobian(), hypernetwork(SMALL, n_tasks), n_tasks
                ),
                f"the authors' loop over outputs{suffix}": authors_jacobian(n_tasks),
            }
            timed += in_turn("regularisers", functions, repeats=1 if n_tasks == 50 else 2)
        for name, kind in KINDS.items():
            functions = {
                f"{name}, 475,202 weights, {n} tasks": after_a_step(
                    kind(), hypernetwork(LARGE, n), n
                )
                for n in (2, 10, 100)
            }
            limits = {f"{name}, 475,202 weights, 100 tasks": Limit(1.2)}
            timed += in_turn("number of tasks", functions, repeats=2 * repeats, limits=limits)
        name = "fix-target, 475,202 weights, 100 tasks"
        functions = {
            name: after_a_step(FixedTarget(), hypernetwork(LARGE, 100), 100),
            "the same in the direct form": after_a_step(
                FixedTarget(form="direct"), hypernetwork(LARGE, 100), 100
            ),
        }
        timed += in_turn("regularisers", functions, repeats=2)
        network = hypernetwork(LARGE, 10)
        functions = {
            "fix-target, 475,202 weights, 10 tasks": after_a_step(
                FixedTarget(), hypernetwork(LARGE, 10), 10
            ),
            "the same with Fisher weights": after_a_step(with_fisher(network, 10), network, 10),
        }
        timed += in_turn("regularisers", functions, repeats=repeats)
    return timed
