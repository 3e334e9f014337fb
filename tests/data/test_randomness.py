"""Random data are refused: kept in memory, they would be frozen."""

import copy
import random

import numpy as np
import pytest
import torch
import torchvision.transforms as v1
import torchvision.transforms.v2 as v2
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import TransformGroups, make_avalanche_dataset
from torch import nn
from torch.utils.data import TensorDataset

from avalanche_hnet import InMemoryPlugin, PriorEWCPlugin
from avalanche_hnet.data.loader import InMemoryLoader
from avalanche_hnet.data.structure import Structure
from tests.support.in_memory import Batches, Jitter, image_model, random_stream
from tests.support.strategies import naive

pytestmark = pytest.mark.in_memory


def assert_refused(benchmark, match, **options):
    model = image_model()
    before = copy.deepcopy(model.state_dict())
    strategy = naive(model, InMemoryPlugin(**options))
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=match):
        strategy.train(benchmark.train_stream[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert strategy.clock.train_iterations == 0
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


CONTAINERS = ("Compose", "Sequential", "TupleTransform", "CenterCrop", "Normalize")


@pytest.mark.parametrize(
    "transform",
    [
        v1.RandomHorizontalFlip(0.0),
        v1.RandomCrop(8, padding=4),
        v1.Compose([v1.Normalize(0, 1), v1.RandomRotation(3)]),
        v1.RandomApply([v1.Normalize(0, 1)]),
        v1.ColorJitter(0.1),
        v1.RandomErasing(),
        v1.Compose([v1.Compose([v1.AutoAugment()])]),
        v2.RandomHorizontalFlip(),
        v2.GaussianNoise(),
        v2.Compose([v2.RandomChoice([v2.Identity()])]),
        v2.TrivialAugmentWide(),
        v1.GaussianBlur(3),
        nn.Sequential(v1.CenterCrop(8), v1.RandomVerticalFlip()),
    ],
    ids=lambda t: type(t).__name__,
)
def test_random_transforms_are_refused_by_name(transform):
    name = next(
        type(t).__name__
        for t in Structure(random_stream(transform).train_stream[0].dataset, list).transforms
        if type(t).__name__ not in CONTAINERS
    )
    assert_refused(random_stream(transform), rf"random transforms, {name}.*frozen")


class OfSources(TensorDataset):
    transform = v1.RandomVerticalFlip()


def test_random_transforms_of_the_source_are_found():
    source = OfSources(torch.rand(10, 3, 8, 8), torch.arange(10) % 2)
    assert_refused(random_stream(source=source), "RandomVerticalFlip")


class NoisyData(TensorDataset):
    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + np.random.rand(), y


def shift(x):
    return x + torch.rand(())


def pick(x):
    return x * random.random()


GENERATOR = torch.Generator()


def of_its_own_generator(x):
    return x + torch.rand((), generator=GENERATOR)


@pytest.mark.parametrize(
    ("benchmark", "what"),
    [
        (lambda: random_stream(shift), "shift"),
        (lambda: random_stream(v1.Compose([pick])), "pick"),
        (lambda: random_stream(of_its_own_generator), "of_its_own_generator"),
        (
            lambda: random_stream(source=NoisyData(torch.rand(10, 3, 8, 8), torch.arange(10) % 2)),
            "NoisyData",
        ),
    ],
    ids=["torch", "random", "generator", "numpy"],
)
def test_other_random_data_give_themselves_away(benchmark, what):
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    assert_refused(benchmark(), f"data are random.*One of these does it: .*{what}")
    assert random.getstate() == state[1]
    assert (np.random.get_state()[1] == state[2]).all()


class Careless(Jitter):
    def __call__(self, x):
        torch.rand(())
        return x


@pytest.mark.parametrize(
    ("transform", "kind"),
    [(v1.RandomHorizontalFlip(1.0), v1.RandomHorizontalFlip), (Careless(), Careless)],
)
def test_a_user_can_say_that_a_transform_is_deterministic(transform, kind):
    benchmark = random_stream(transform)
    assert_refused(benchmark, type(transform).__name__)
    assert_refused(benchmark, type(transform).__name__, deterministic=[v1.RandomCrop])
    batches = Batches()
    strategy = naive(image_model(), InMemoryPlugin(deterministic=[kind]), batches)
    strategy.train(benchmark.train_stream[0], shuffle=False)
    assert set(batches.loaders) == {InMemoryLoader}


def test_what_is_the_same_each_time_is_not_refused():
    strategy = naive(image_model(), InMemoryPlugin())
    strategy.train(random_stream(Jitter()).train_stream[0])


def test_random_transforms_of_training_do_not_matter_for_evaluation():
    strategy = naive(image_model(), InMemoryPlugin())
    strategy.eval(random_stream(v1.RandomCrop(8)).test_stream)


def test_fisher_of_data_that_cannot_be_kept_is_computed_without_memory():
    groups = TransformGroups({"train": (None, None), "eval": (shift, None)})
    x = torch.rand(10, 3, 8, 8)
    data = make_avalanche_dataset(TensorDataset(x, torch.arange(10) % 2), transform_groups=groups)
    plugin = PriorEWCPlugin()
    strategy = naive(image_model(), plugin, InMemoryPlugin())
    strategy.train(benchmark_from_datasets(train=[data]).train_stream[0])
    assert plugin.posterior.known["1.weight"].all()


def test_a_lambda_is_named_and_can_be_vouched_for():
    benchmark = random_stream(v1.Lambda(shift))
    assert_refused(benchmark, "One of these does it: Lambda, TensorDataset")
    strategy = naive(image_model(), InMemoryPlugin(deterministic=[v1.Lambda]))
    strategy.train(benchmark.train_stream[0])
