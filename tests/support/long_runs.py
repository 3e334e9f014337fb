"""Many tiny experiences, and what is left of them.

``python -m tests.support.long_runs KIND... M N`` prints what :func:`measure` finds after M and N
experiences of each kind, as JSON.
"""

import gc
import json
import os
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from avalanche.models import MultiHeadClassifier

from avalanche_hnet import FixedTarget, InMemoryPlugin, IsolatedEvaluationPlugin, PriorEWCPlugin
from tests.support.hypernets import hyper_model, learner
from tests.support.models import MultiHead, mlp
from tests.support.strategies import naive
from tests.support.streams import task_stream

# How each strategy is made, and whether each experience is a task of its own.
KINDS = {
    "Naive": (lambda: _naive(mlp(n_out=2)), False),
    "diagonal": (lambda: _naive(mlp(n_out=2), PriorEWCPlugin(log_every=1)), False),
    "Kronecker": (
        lambda: _naive(mlp(n_out=2), PriorEWCPlugin(log_every=1, structure="kronecker")),
        False,
    ),
    "Naive, heads": (lambda: _naive(_heads()), True),
    "diagonal, heads": (lambda: _naive(_heads(), PriorEWCPlugin(log_every=1)), True),
    "Kronecker, heads": (
        lambda: _naive(_heads(), PriorEWCPlugin(log_every=1, structure="kronecker")),
        True,
    ),
    "hypernetwork": (lambda: _hypernetwork(), True),
}


@dataclass(frozen=True)
class Left:
    """What is alive after so many experiences."""

    n_calls: int
    """Of functions, Python's and PyTorch's, while the last experience was trained and evaluated."""
    n_tensors: int
    tensor_bytes: int
    n_graphs: int
    n_objects: int
    n_hooks: int
    n_files: int
    resident_bytes: int


def measure(kind, n_experiences, at):
    """Times of each experience, and by number what is left after those in ``at``.

    Times are CPU times as multiples of that of a first experience with a new ``Naive``, at the same
    moment, since others may use the machine, too.
    """
    make, by_task = KINDS[kind]
    torch.manual_seed(0)
    labels = None if by_task else [0] * n_experiences
    stream = task_stream(n_experiences, n_samples=10, task_labels=labels)
    strategy, times, left = make(), [], {}
    for number, experience in enumerate(stream.train_stream, 1):
        with _Calls(counted=number in at) as calls:
            start = time.process_time()
            strategy.train(experience)
            strategy.eval(stream.test_stream[0])
            end = time.process_time()
        _train_anew(stream.train_stream[0])
        times.append((end - start) / (time.process_time() - end))
        if number in at:
            times[-1] = float("nan")  # counting takes time
            left[number] = _left(strategy, calls.number)
    return times, left


class _Calls:
    """Counts the calls of functions inside."""

    def __init__(self, counted):
        self.counted, self.number = counted, 0

    def __enter__(self):
        if self.counted:
            sys.setprofile(self._count)
        return self

    def __exit__(self, *_):
        if self.counted:
            sys.setprofile(None)

    def _count(self, frame, event, argument):
        self.number += event in ("call", "c_call")


def _train_anew(experience):
    """The same each time, and much like what is measured."""
    _naive(mlp(n_out=2)).train(experience)


def slope(values):
    """Of a line through the values that are no NaN, and its standard error."""
    y = np.asarray(values)
    x = np.arange(len(y))[~np.isnan(y)]
    y, x = y[x], x - x.mean()
    found = x @ y / (x @ x)
    residuals = y - y.mean() - found * x
    return found, (residuals @ residuals / (len(x) - 2) / (x @ x)) ** 0.5


def _naive(model, *protection):
    return naive(model, IsolatedEvaluationPlugin(), InMemoryPlugin(), *protection, lr=0.01)


def _heads():
    return MultiHead(MultiHeadClassifier(8))


def _hypernetwork():
    regularizer = FixedTarget(beta=0.1, tasks_per_step=4)
    return learner(hyper_model(), regularizer, IsolatedEvaluationPlugin(), lr=0.01, log_every=1)


def _left(strategy, n_calls):
    for _ in range(2):
        gc.collect()
    objects = gc.get_objects()
    tensors = [o for o in objects if issubclass(type(o), torch.Tensor)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    hooks = [
        hook
        for module in strategy.model.modules()
        for name, held in vars(module).items()
        if name.endswith("_hooks")
        for hook in held
    ]
    resident = int(Path("/proc/self/statm").read_text().split()[1]) if os.name == "posix" else 0
    return Left(
        n_calls=n_calls,
        n_tensors=len(tensors),
        tensor_bytes=sum(storages.values()),
        n_graphs=sum(t.grad_fn is not None for t in tensors),
        n_objects=len(objects),
        n_hooks=len(hooks),
        n_files=len(os.listdir("/proc/self/fd")),
        resident_bytes=resident * 4096,
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    *kinds, some, many = sys.argv[1:]
    found = {}
    for kind in kinds:
        times, left = measure(kind, int(many), at={int(some), int(many)})
        found[kind] = times, {number: asdict(of) for number, of in left.items()}
    print(json.dumps(found))
