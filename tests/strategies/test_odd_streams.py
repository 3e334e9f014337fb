"""Streams that are small, odd or wrong are trained on, or refused by the package's own sentence."""

import random
import traceback
import warnings
from pathlib import Path

import pytest
import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.models import IncrementalClassifier
from avalanche.training.plugins import ReplayPlugin
from torch import nn

import avalanche_hnet
from avalanche_hnet import (
    EWC,
    FixedTarget,
    HyperModel,
    HypernetTemplate,
    HyperNetwork,
    Jacobian,
    PriorEWC,
    PriorEWCPlugin,
)
from avalanche_hnet.benchmarks import SplitDigits
from tests.support.hypernets import hyper_model, learner
from tests.support.models import mlp
from tests.support.strategies import naive
from tests.support.streams import task_stream, two_tasks_in_one

PACKAGE = Path(avalanche_hnet.__file__).parent


def random_case(seed):
    """A strategy and a stream, both of random kinds."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    n_classes, is_offset = draw.choice([1, 2, 3]), draw.random() < 0.5
    odd = draw.choice(["", "", "", "negative", "too large"])
    sizes = [draw.choice([1, 1, 2, 3, 5, 9]) for _ in range(draw.randint(1, 4))]
    data = []
    for number, size in enumerate(sizes):
        y = torch.randint(0, n_classes, (size,)) + (n_classes * number if is_offset else 0)
        if number == len(sizes) - 1:
            y += {"": 0, "negative": -1, "too large": 50}[odd]
        data.append((torch.randn(size, 6), y))
    later = [(x, y + draw.choice([0, 0, 5])) for x, y in data]
    labels = draw.choice([[0] * 4, [0, 1, 2, 3], [3, 1, 7, 2]])[: len(sizes)]
    benchmark = tensors_benchmark(train_tensors=data, test_tensors=later, task_labels=labels)
    options = {
        "train_mb_size": draw.choice([1, 2, 4, 16]),
        "eval_mb_size": draw.choice([1, 3]),
        "eval_every": draw.choice([-1, -1, 0]),
    }
    n_out = draw.choice([n_classes, n_classes * len(sizes)])
    is_frozen = draw.random() < 0.1
    kind = draw.choice(["plugin", "strategy", "replay", "hypernetwork", "several heads"])
    if kind in ("hypernetwork", "several heads"):
        target = mlp(n_out=n_out)
        hypernetwork = HyperNetwork(target, embedding_dim=2, hidden=(3,))
        if is_frozen:
            hypernetwork.requires_grad_(False)
        model = HyperModel(target, hypernetwork, multi_head=kind == "several heads")
        regularizer = draw.choice([None, FixedTarget(), Jacobian(), EWC()])
        return learner(model, regularizer, **options), benchmark
    model = mlp(n_out=n_out)
    if draw.random() < 0.5:
        model[2] = IncrementalClassifier(8, 1)
    model.requires_grad_(not is_frozen)
    structure = draw.choice(["diagonal", "kronecker"])
    if kind == "strategy":
        return naive(model, strategy=PriorEWC, structure=structure, **options), benchmark
    others = [ReplayPlugin(5)] if kind == "replay" else []
    return naive(model, PriorEWCPlugin(structure=structure), *others, **options), benchmark


def test_random_streams():
    n_fine, n_refused = 0, 0
    for seed in range(60):
        strategy, benchmark = random_case(seed)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for experience in benchmark.train_stream:
                    strategy.train(experience)
                    strategy.eval(benchmark.test_stream)
            n_fine += 1
        except ValueError as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            if not Path(last.filename).is_relative_to(PACKAGE):
                raise AssertionError(f"a foreign error with seed {seed}") from error
            n_refused += 1
    assert min(n_fine, n_refused) > 10


@pytest.mark.parametrize(
    "make",
    [
        lambda: naive(mlp(n_out=2), PriorEWCPlugin(), train_mb_size=1),
        lambda: naive(mlp(n_out=2), strategy=PriorEWC, train_mb_size=1),
        lambda: learner(hyper_model(), None, train_mb_size=1),
    ],
)
def test_batches_smaller_than_the_number_of_tasks(make):
    strategy, both = make(), two_tasks_in_one(*task_stream(2).train_stream)
    before = {n: t.clone() for n, t in strategy.model.state_dict().items() if torch.is_tensor(t)}
    with pytest.raises(ValueError, match=r"train_mb_size=1 is .* tasks \[0, 1\].*least 2"):
        strategy.train(both)
    after = strategy.model.state_dict()
    assert all(torch.equal(t, after[n]) for n, t in before.items())
    strategy.train_mb_size = 2
    strategy.train(both)


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_targets_of_an_experience_that_is_evaluated(structure):
    stream = task_stream(2, offset=True)
    strategy = naive(mlp(n_out=2), strategy=PriorEWC, structure=structure)
    strategy.train(stream.train_stream[0])
    with pytest.raises(ValueError, match=r"experience 1, which is evaluated, has targets from 2"):
        strategy.eval(stream.test_stream)
    assert all(module.training for module in strategy.model.modules())
    strategy.eval(stream.test_stream[:1])


def test_a_hypernetwork_that_is_frozen_as_a_whole():
    stream = task_stream(2).train_stream
    strategy = learner(hyper_model(), FixedTarget())
    strategy.train(stream[0])
    strategy.model.adaptation(stream[1])
    strategy.model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"does not depend on any parameter .* do not freeze all"):
        strategy.train(stream[1])


def test_one_class_at_a_time():
    benchmark = SplitDigits(10, class_ids_from_zero_in_each_exp=True, return_task_id=True)
    target = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model = HyperModel(target, HyperNetwork(target, embedding_dim=2), multi_head=True)
    strategy = naive(model, strategy=HypernetTemplate, regularizer=None)
    with pytest.raises(ValueError, match=r"single class 0.* at least two classes into each exp"):
        strategy.train(benchmark.train_stream[0])
