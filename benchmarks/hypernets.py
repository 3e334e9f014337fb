"""A whole iteration of a hypernetwork, Avalanche's loop included, against plain training."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from pathlib import Path

import torch
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from avalanche_hnet import ChunkedHyperNetwork, FixedTarget, HyperModel, HypernetTemplate
from benchmarks.networks import mlp
from benchmarks.rows import Function, Limit, Row, in_turn
from benchmarks.strategies import DEVICE, Loop, in_the_last_experience, random_stream
from benchmarks.timing import threads
from experiments import toy_regression
from experiments.permuted_mnist import PermutedMNISTOptions

BATCH_SIZE, N_ITERATIONS = 128, 20
AUTHORS_SECONDS = 88.0  # of the toy regression, measured once on a machine like the last table's


def rows(repeats: int) -> list[Row]:
    """Split MNIST's and Permuted MNIST's main networks, more and more tasks, and the regression."""
    timed = []
    of_permuted = PermutedMNISTOptions().hypernet
    assert of_permuted.chunk_size is not None
    for n_threads in (1, 2):
        with threads(n_threads):
            split: dict[str, Function] = {
                "plain training, 784-400-400-2": _plain(784, 400, 400, 2),
                "hypernetwork, 784-400-400-2, 4 earlier tasks": _iterations(
                    (784, 400, 400, 2), 4, 42_000, (10, 10)
                ),
            }
            name = list(split)[-1]
            timed += in_turn(
                "hypernetwork",
                split,
                repeats=2 * repeats,
                limits={name: Limit(2.5)} if n_threads == 2 else {},
                per_call=N_ITERATIONS,
            )
    with threads(2):
        permuted: dict[str, Function] = {
            "plain training, 784-1000-1000-10": _plain(784, 1000, 1000, 10),
            **{
                f"hypernetwork, 784-1000-1000-10 in chunks of {size:,}, 9 earlier": _iterations(
                    (784, 1000, 1000, 10), 9, size, of_permuted.hidden
                )
                for size in (of_permuted.chunk_size, 42_000)
            },
        }
        limits = dict.fromkeys(list(permuted)[1:], Limit(3))
        timed += in_turn(
            "hypernetwork", permuted, repeats=repeats, limits=limits, per_call=N_ITERATIONS
        )
    with threads(1):
        growing: dict[str, Function] = {
            f"hypernetwork, 784-400-400-2, {n} earlier tasks": _iterations(
                (784, 400, 400, 2), n, 42_000, (10, 10)
            )
            for n in (2, 10, 50, 100)
        }
        limits = {list(growing)[-1]: Limit(1.2)}
        timed += in_turn(
            "number of tasks", growing, repeats=2 * repeats, limits=limits, per_call=N_ITERATIONS
        )
        timed.append(_regression())
    return timed


def _plain(*widths: int) -> Loop:
    n = BATCH_SIZE * N_ITERATIONS
    x, y = torch.randn(n, widths[0]), torch.randint(widths[-1], (n,))
    return Loop(mlp(*widths), x, y, BATCH_SIZE)


def _iterations(
    widths: tuple[int, ...], n_earlier: int, chunk_size: int, hidden: tuple[int, ...]
) -> Function:
    """Iterations with so many tasks learned, all of them regularised, looking ahead with Adam."""
    torch.manual_seed(0)
    target = mlp(*widths)
    hypernetwork = ChunkedHyperNetwork(
        target,
        chunk_size=chunk_size,
        chunk_embedding_dim=96,
        embedding_dim=96,
        hidden=hidden,
        init="hyperfan",
    )
    model = HyperModel(target, hypernetwork)
    strategy = HypernetTemplate(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), 1e-3),
        regularizer=FixedTarget(0.01),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=BATCH_SIZE,
        device=DEVICE,
        evaluator=EvaluationPlugin(loggers=[]),
    )
    sizes = [BATCH_SIZE] * n_earlier + [BATCH_SIZE * N_ITERATIONS]
    benchmark = random_stream(sizes, (widths[0],), widths[-1], labels=True)
    in_the_last_experience(strategy, benchmark)
    return strategy.training_epoch


def _regression() -> Row:
    """The whole toy regression, logging, evaluation and pictures included."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        options = toy_regression.ToyRegressionOptions(output=Path(folder))
        start = time.perf_counter()
        toy_regression.main(options)
        seconds = time.perf_counter() - start
    return Row(
        "regression",
        "toy regression, three tasks of 4,001 iterations",
        f"the authors' code ({AUTHORS_SECONDS:g} s on two cores)",
        [AUTHORS_SECONDS / seconds],
        1e3 * seconds,
        limit=Limit(6, at_least=True),
    )
