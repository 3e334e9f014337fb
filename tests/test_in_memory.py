"""InMemoryPlugin against Avalanche's own loaders and against a plain loop."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
import torchvision.transforms as v1
import torchvision.transforms.v2 as v2
from avalanche.benchmarks import benchmark_from_datasets, with_task_labels
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.benchmarks.utils import (
    AvalancheDataset,
    ConstantSequence,
    TaskLabels,
    TransformGroups,
    make_avalanche_dataset,
)
from avalanche.models import MultiHeadClassifier
from avalanche.training import (
    GDumb,
    JointTraining,
    Naive,
    Replay,
)
from avalanche.training.plugins import ReplayPlugin, SupervisedPlugin
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

from avalanche_hnet import FixedTarget, InMemoryPlugin, PriorEWCPlugin
from avalanche_hnet.benchmarks import SplitDigits
from avalanche_hnet.data.loader import InMemoryLoader
from avalanche_hnet.data.store import TensorStore
from avalanche_hnet.data.structure import Structure
from tests.hypernets import hyper_model, learner, tensors
from tests.models import MultiHead, mlp
from tests.streams import regression_stream, task_stream, two_tasks_in_one
from tests.test_prior_ewc import naive

pytestmark = pytest.mark.in_memory
CPU = torch.device("cpu")


class Batches(SupervisedPlugin):
    """Copies of all batches that a strategy sees."""

    def __init__(self):
        super().__init__()
        self.training, self.evaluation, self.loaders = [], [], []

    def before_training_iteration(self, strategy, **kwargs):
        self.training.append([t.clone() for t in strategy.mbatch])
        self.loaders.append(type(strategy.dataloader))

    def before_eval_iteration(self, strategy, **kwargs):
        self.evaluation.append([t.clone() for t in strategy.mbatch])
        self.loaders.append(type(strategy.dataloader))


def run(benchmark, make, *plugins, in_memory, **train):
    """Batches and final weights."""
    torch.manual_seed(5)
    batches = Batches()
    memory = [InMemoryPlugin()] if in_memory else []
    strategy = make(*memory, *(copy.deepcopy(plugins)), batches)
    for experience in benchmark.train_stream:
        strategy.train(experience, **train)
        strategy.eval(benchmark.test_stream)
    assert all((loader is InMemoryLoader) == in_memory for loader in batches.loaders)
    return batches, {n: p.detach() for n, p in strategy.model.named_parameters()}


def assert_same_run(benchmark, make, *plugins, **train):
    expected, expected_weights = run(benchmark, make, *plugins, in_memory=False, **train)
    found, found_weights = run(benchmark, make, *plugins, in_memory=True, **train)
    for kind in ("training", "evaluation"):
        ours, theirs = getattr(found, kind), getattr(expected, kind)
        assert len(ours) == len(theirs) > 0
        for own, other in zip(ours, theirs, strict=True):
            assert len(own) == len(other)
            for a, b in zip(own, other, strict=True):
                assert a.dtype == b.dtype
                assert torch.equal(a, b)
    assert found_weights.keys() == expected_weights.keys()
    for name, weight in expected_weights.items():
        assert torch.equal(found_weights[name], weight), name
    return found


def of(strategy_class, model=None, **options):
    def make(*plugins):
        torch.manual_seed(6)
        learned = MultiHead() if model is None else copy.deepcopy(model)
        return naive(learned, *plugins, strategy=strategy_class, **options)

    return make


def no_labels():
    data = [(torch.randn(17, 6), torch.randn(17, 2)) for _ in range(2)]
    return regression_stream(data)


# Batches, bit for bit


@pytest.mark.parametrize("train", [{}, {"drop_last": True}, {"shuffle": False}], ids=str)
def test_batches_are_those_of_avalanche(train):
    found = assert_same_run(task_stream(3, n_samples=23), of(Naive), **train)
    sizes = [len(batch[0]) for batch in found.training]
    assert (3 in sizes) == ("drop_last" not in train)
    assert len(found.training[0]) == 3  # x, y and task label


def test_streams_without_task_labels():
    assert_same_run(no_labels(), of(Naive, mlp(n_out=2), criterion=nn.MSELoss()))


def test_tasks_are_balanced():
    stream = task_stream(2, n_samples=20).train_stream
    small = stream[1].dataset.subset(range(6))
    first = stream[0].dataset
    mixed = two_tasks_in_one(stream[0], stream[1])
    uneven = with_task_labels(benchmark_from_datasets(train=[first.concat(small)], test=[first]))
    for experience in (mixed, uneven.train_stream[0]):
        benchmark = type("B", (), {"train_stream": [experience], "test_stream": stream[:1]})
        experience.classes_in_this_experience = [0, 1]
        heads = MultiHead(MultiHeadClassifier(8, masking=False))
        found = assert_same_run(benchmark, of(Naive, heads, train_mb_size=6))
        assert {tuple(batch[2].bincount().tolist()) for batch in found.training} >= {(3, 3)}


@pytest.mark.parametrize("first", [True, False])
def test_replay(first):
    replay = ReplayPlugin(mem_size=9, batch_size_mem=4)
    found = assert_same_run(task_stream(3, n_samples=23), of(Naive), replay)
    assert len({*found.training[-1][2].tolist()}) > 1
    benchmark = task_stream(2)
    batches = Batches()
    plugins = [InMemoryPlugin(), replay] if first else [replay, InMemoryPlugin()]
    strategy = naive(MultiHead(), *plugins, batches)
    for experience in benchmark.train_stream:
        strategy.train(experience)
    assert set(batches.loaders) == {InMemoryLoader}
    assert len(batches.training[-1][0]) == 9


def test_a_memory_that_starts_anew_in_the_middle_of_an_epoch():
    model = nn.Sequential(nn.Linear(6, 20), nn.Dropout(0.5), nn.Linear(20, 2))
    replay = ReplayPlugin(mem_size=9, batch_size_mem=4)  # used up after three of five batches
    assert_same_run(task_stream(3, n_samples=23), of(Naive, model), replay)


def test_other_strategies_that_change_the_data():
    benchmark = task_stream(2, n_samples=20)
    assert_same_run(benchmark, of(Replay, mem_size=10))
    assert_same_run(benchmark, of(GDumb, mem_size=10))


def test_joint_training():
    def train(in_memory):
        torch.manual_seed(0)
        batches = Batches()
        memory = [InMemoryPlugin()] if in_memory else []
        strategy = naive(MultiHead(), *memory, batches, strategy=JointTraining)
        strategy.train(task_stream(3).train_stream)
        return batches.training

    for ours, theirs in zip(train(True), train(False), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_online_streams():
    benchmark = task_stream(2, n_samples=20)
    pieces = list(split_online_stream(benchmark.train_stream, experience_size=10))
    small = type("B", (), {"train_stream": pieces, "test_stream": benchmark.test_stream})
    for piece in pieces:
        piece.classes_in_this_experience = [0, 1]
    assert_same_run(small, of(Naive, nn.Sequential(nn.Linear(6, 2))))


def test_random_numbers_of_the_training_are_as_without():
    model = nn.Sequential(nn.Linear(6, 20), nn.Dropout(0.5), nn.Linear(20, 2))
    assert_same_run(task_stream(2), of(Naive, model))


def test_evaluation_in_the_middle_of_training():
    assert_same_run(task_stream(2), of(Naive, eval_every=1, train_epochs=3))


@pytest.mark.parametrize(
    "regularizer", [None, FixedTarget(0.1), FixedTarget(0.1, fisher_weights=True)]
)
def test_hypernetworks_learn_the_same(regularizer):
    found = []
    for in_memory in (True, False):
        torch.manual_seed(2)
        model = hyper_model()
        batches = Batches()
        strategy = learner(model, copy.deepcopy(regularizer), batches, in_memory=in_memory)
        for experience in task_stream(3).train_stream:
            strategy.train(experience)
        strategy.eval(task_stream(3).test_stream)
        assert set(batches.loaders) == {InMemoryLoader} or not in_memory
        assert InMemoryLoader not in batches.loaders or in_memory
        found.append({n: p.detach() for n, p in model.named_parameters()})
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("n_fisher", [None, 7])
def test_prior_ewc_learns_the_same(n_fisher):
    make = of(Naive)
    plugin = PriorEWCPlugin(10.0, n_fisher=n_fisher, generator=torch.Generator().manual_seed(3))
    benchmark = task_stream(3, n_samples=23)
    posteriors = []
    for in_memory in (True, False):
        own = copy.deepcopy(plugin)
        memory = [InMemoryPlugin()] if in_memory else []
        torch.manual_seed(1)
        strategy = make(own, *memory)
        for experience in benchmark.train_stream:
            strategy.train(experience)
        posteriors.append(own.posterior.precision)
    torch.testing.assert_close(*posteriors, rtol=1e-5, atol=1e-6)


def test_fisher_is_computed_from_memory_without_another_reading():
    benchmark = counting_stream()
    plugin = PriorEWCPlugin(n_fisher=4)
    strategy = naive(mlp(n_in=4, n_out=2), plugin, InMemoryPlugin())
    strategy.train(benchmark.train_stream[0])
    n_read = Counting.read
    assert n_read <= 12 + 2 * 20  # all samples once, and the first few to try them out
    strategy.train(benchmark.train_stream[0])
    assert Counting.read - n_read <= 20


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 20), size=st.integers(1, 25), drop=st.booleans(), epochs=st.integers(1, 3))
def test_batches_are_those_of_a_plain_seeded_loop(n, size, drop, epochs):
    x, y = torch.randn(n, 3), torch.arange(n)
    loader = DataLoader(TensorDataset(x, y), size, shuffle=True, drop_last=drop)
    expected = []
    torch.manual_seed(n)
    for _ in range(epochs):
        generator = torch.Generator()
        torch.empty((), dtype=torch.int64).random_()  # the loader's own seed
        generator.manual_seed(int(torch.empty((), dtype=torch.int64).random_()))
        order = torch.randperm(n, generator=generator)
        full = n - n % size if drop else n
        expected += [(x[rows], y[rows]) for rows in order[:full].split(size) if len(rows)]
    strategy = type("S", (), {"dataloader": loader, "device": CPU, "plugins": []})()
    InMemoryPlugin().before_training_epoch(strategy)
    torch.manual_seed(n)
    found = [tuple(batch) for _ in range(epochs) for batch in strategy.dataloader]
    assert len(strategy.dataloader) == len(loader)
    assert len(found) == len(expected)
    for ours, plain in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


def test_a_plain_loop_over_the_same_tensors_trains_the_same_weights():
    (experience,) = task_stream(1, n_samples=30).train_stream
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    plain = copy.deepcopy(model)
    strategy = naive(model, InMemoryPlugin(), train_mb_size=7, train_epochs=2)
    torch.manual_seed(9)
    strategy.train(experience)

    columns = zip(*experience.dataset, strict=True)
    x, y, _ = (torch.stack([torch.as_tensor(v) for v in column]) for column in columns)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    torch.manual_seed(9)
    for _ in range(2):
        # As PyTorch's loaders draw: a seed for the loader, and one for the order.
        torch.empty((), dtype=torch.int64).random_()
        seed = int(torch.empty((), dtype=torch.int64).random_())
        order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
        for rows in order.split(7):
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain(x[rows]), y[rows]).backward()
            optimizer.step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_real_images():
    assert_same_run(
        SplitDigits(5, return_task_id=True, class_ids_from_zero_in_each_exp=True),
        of(Naive, nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), train_mb_size=64),
    )


# What is read, and how often


class Counting(Dataset):
    read = 0

    def __init__(self, n):
        self.x, self.targets = torch.randn(n, 4), [i % 2 for i in range(n)]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        Counting.read += 1
        return self.x[index], self.targets[index]


def counting_stream(n=12, **groups):
    Counting.read = 0
    data = [make_avalanche_dataset(Counting(n), **groups) for _ in range(3)]
    return benchmark_from_datasets(train=data, test=data)


def test_each_data_set_is_read_once():
    benchmark = counting_stream(n=100)
    strategy = naive(mlp(n_in=4, n_out=2), InMemoryPlugin(), train_epochs=5)
    for experience in benchmark.train_stream:
        strategy.train(experience)
        for _ in range(3):
            strategy.eval(benchmark.test_stream)
    assert 300 <= Counting.read < 600 + 9 * 20  # training data again, after they were dropped
    n_read = Counting.read
    strategy.eval(benchmark.test_stream)
    assert Counting.read == n_read


def test_transforms_of_training_and_evaluation_are_told_apart():
    groups = TransformGroups({"train": lambda x: x + 1, "eval": lambda x: x - 1})
    benchmark = counting_stream(transform_groups=groups)
    batches = Batches()
    strategy = naive(mlp(n_in=4, n_out=2), InMemoryPlugin(), batches, train_mb_size=12)
    strategy.train(benchmark.train_stream[0], shuffle=False)
    strategy.eval(benchmark.train_stream[:1])
    torch.testing.assert_close(batches.training[0][0] - 1, batches.evaluation[0][0] + 1)


def key(dataset, collate=torch.utils.data.default_collate):
    return Structure(dataset, collate).key


def test_keys_tell_what_is_the_same():
    data = TensorDataset(torch.randn(6, 2), torch.arange(6))
    plain = AvalancheDataset([data])
    assert key(plain) == key(plain.train()) == key(plain.subset(range(6)))
    assert key(plain) == key(ConcatDataset([plain])) == key(Subset(plain, list(range(6))))
    assert key(plain) != key(AvalancheDataset([TensorDataset(*data.tensors)]))
    assert key(plain) != key(plain.subset([0, 1, 2, 3, 5, 4]))
    assert key(plain.subset([3, 1])) == key(plain.subset([5, 3, 1]).subset([1, 2]))
    assert key(plain.subset([3, 1])) != key(plain.subset([1, 3]))
    assert key(plain) != key(plain, lambda batch: batch)

    def with_labels(*labels):
        return plain.update_data_attribute("targets_task_labels", list(labels))

    labelled = with_labels(0, 0, 0, 1, 1, 1)
    labelled._data_attributes["targets_task_labels"].use_in_getitem = True
    other = with_labels(0, 0, 0, 0, 1, 1)
    other._data_attributes["targets_task_labels"].use_in_getitem = True
    assert len({key(labelled), key(other), key(plain)}) == 3


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (v1.Normalize(0.1, 0.2), v1.Normalize(0.1, 0.2), True),
        (v1.Normalize(0.1, 0.2), v1.Normalize(0.1, 0.3), False),
        (v2.ToDtype(torch.float32), v2.ToDtype(torch.float64), False),
        (v2.ToDtype(torch.float32), v2.ToDtype(torch.float32), True),
        (v1.Lambda(lambda x: x), v1.Lambda(lambda x: x + 1), False),
        (v1.Compose([v1.Pad(1), v1.Pad(2)]), v1.Compose([v1.Pad(1), v1.Pad(2)]), True),
        (v1.Compose([v1.Pad(1), v1.Pad(2)]), v1.Compose([v1.Pad(2), v1.Pad(1)]), False),
        (v1.Compose([v1.Pad(1)]), v1.FiveCrop(2), False),
        (nn.Sequential(v1.Pad(1)), nn.Sequential(v1.Pad(1)), True),
        (nn.Sequential(v1.Pad(1)), nn.Sequential(v1.Pad(2)), False),
        (v1.Resize(4), v1.Resize(4, v1.InterpolationMode.NEAREST), False),
    ],
)
def test_torchvisions_transforms_are_the_same_if_their_arguments_are(first, second, same):
    data = TensorDataset(torch.randn(6, 1, 8, 8), torch.arange(6))
    groups = TransformGroups({"train": (first, None), "eval": (second, None)})
    dataset = AvalancheDataset([data], transform_groups=groups)
    assert (key(dataset.train()) == key(dataset.eval())) == same


def test_training_data_are_dropped_and_test_data_kept():
    benchmark = task_stream(3)
    plugin = InMemoryPlugin()
    strategy = naive(MultiHead(), plugin)
    for k, experience in enumerate(benchmark.train_stream, 1):
        strategy.train(experience)
        assert len(plugin._store._entries) == 1 + (3 if k > 1 else 0)
        strategy.eval(benchmark.test_stream)
        assert len(plugin._store._entries) == 4


def test_num_workers_read_and_are_then_ignored():
    benchmark, found = task_stream(1), []
    for workers in (0, 1):
        torch.manual_seed(0)
        batches = Batches()
        strategy = naive(MultiHead(), InMemoryPlugin(), batches)
        if workers:
            with pytest.warns(UserWarning, match="num_workers=1, pin_memory=True ignored, but for"):
                strategy.train(benchmark.train_stream[0], num_workers=1, pin_memory=True)
        else:
            strategy.train(benchmark.train_stream[0])
        found.append(batches.training)
    for ours, theirs in zip(*found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# What is refused


def random_stream(transform=None, target_transform=None, source=None):
    x = torch.rand(10, 3, 8, 8)
    source = source or TensorDataset(x, torch.arange(10) % 2)
    groups = TransformGroups({"train": (transform, target_transform), "eval": (None, None)})
    data = make_avalanche_dataset(source, transform_groups=groups)
    return benchmark_from_datasets(train=[data], test=[data])


def image_model():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 2))


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


class Jitter:
    """Random, but always the same."""

    def __call__(self, x):
        state = torch.get_rng_state()
        torch.manual_seed(1)
        noise = torch.rand(x.shape)
        torch.set_rng_state(state)
        return x + noise

    def __repr__(self):
        return "Jitter()"


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


def test_the_template_has_it_by_default_and_says_how_to_do_without():
    labelled = random_stream(v1.RandomCrop(8)).train_stream[0].dataset
    labels = TaskLabels(ConstantSequence(0, len(labelled)))
    labelled = labelled.update_data_attribute("targets_task_labels", labels)
    benchmark = with_task_labels(benchmark_from_datasets(train=[labelled]))
    benchmark.train_stream[0].classes_in_this_experience = [0, 1]
    with pytest.raises(ValueError, match=r"RandomCrop.*in_memory=False"):
        learner(hyper_model(image_model())).train(benchmark.train_stream[0])
    learner(hyper_model(image_model()), in_memory=False).train(benchmark.train_stream[0])
    own = InMemoryPlugin(deterministic=[v1.RandomCrop])
    strategy = learner(hyper_model(image_model()), None, own)
    assert sum(isinstance(p, InMemoryPlugin) for p in strategy.plugins) == 1
    strategy.train(benchmark.train_stream[0])


def test_memory_limit():
    benchmark = task_stream(1, n_samples=1000)
    model = MultiHead()
    strategy = naive(model, InMemoryPlugin(memory_limit=30_000))
    with pytest.raises(ValueError, match=r"need 40,000 bytes, .* is 30,000"):
        strategy.train(benchmark.train_stream[0])
    assert strategy.clock.train_iterations == 0
    naive(model, InMemoryPlugin(memory_limit=50_000)).train(benchmark.train_stream[0])


def test_what_was_used_longest_ago_is_dropped_at_the_limit():
    data = [AvalancheDataset([TensorDataset(torch.rand(10, 8))]) for _ in range(3)]
    store = TensorStore(2 * 10 * 8 * 4)
    for k in (0, 1, 0, 2):
        store.get(data[k], data[k].collate_fn, CPU)
    held = [store.holds(d, d.collate_fn, CPU) for d in data]
    assert held == [True, False, True]


def test_samples_of_different_shapes_are_refused():
    class Ragged(Dataset):
        targets = [0] * 300

        def __len__(self):
            return 300

        def __getitem__(self, index):
            return torch.ones(2 if index < 256 else 3), 0

    data = AvalancheDataset([Ragged()])
    store = TensorStore(2**30)
    with pytest.raises(ValueError, match=r"same shape .*\(2,\).*\(3,\)"):
        store.get(data, data.collate_fn, CPU)


@pytest.mark.parametrize("sample", [{"x": 1}, (1, "label")])
def test_samples_that_are_no_tensors_are_refused(sample):
    data = AvalancheDataset([[sample] * 5])
    with pytest.raises(ValueError, match="samples must be sequences of tensors or numbers"):
        TensorStore(2**30).get(data, data.collate_fn, CPU)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"memory_limit": 0}, ValueError, "memory_limit must be at least 1, got 0"),
        ({"deterministic": ["RandomCrop"]}, TypeError, "list of classes.*'RandomCrop'"),
        ({"deterministic": "RandomCrop"}, TypeError, "list of classes.*'RandomCrop'"),
        ({"deterministic": v1.RandomCrop}, TypeError, "list of classes.*RandomCrop"),
    ],
)
def test_bad_arguments(options, error, match):
    with pytest.raises(error, match=match):
        InMemoryPlugin(**options)


class Endless(IterableDataset):
    def __iter__(self):
        yield from [(torch.ones(6), 0)] * 5


@pytest.mark.parametrize("loader", [[1, 2], DataLoader(Endless(), 2)], ids=["list", "iterable"])
def test_other_loaders_are_left_with_a_warning(loader):
    strategy = type("S", (), {"dataloader": loader, "device": CPU, "plugins": []})()
    with pytest.warns(UserWarning, match=rf"cannot serve a {type(loader).__name__}"):
        InMemoryPlugin().before_training_epoch(strategy)
    assert strategy.dataloader is loader


class Add(SupervisedPlugin):
    """Adds samples of another task to each batch."""

    def __init__(self, other, in_place):
        super().__init__()
        self.other, self.in_place = [t[:3] for t in other], in_place

    def before_training_iteration(self, strategy, **kwargs):
        both = [torch.cat(pair) for pair in zip(strategy.mbatch, self.other, strict=True)]
        if self.in_place:  # as Avalanche's generative replay does
            strategy.mbatch[:] = both
        else:
            strategy.mbatch = both


@pytest.mark.parametrize("in_place", [True, False])
def test_hypernetworks_notice_batches_that_plugins_change(in_place):
    benchmark = task_stream(2)
    found = []
    for in_memory in (True, False):
        torch.manual_seed(4)
        model = hyper_model()
        strategy = learner(model, None, in_memory=in_memory)
        strategy.train(benchmark.train_stream[0])
        strategy.plugins.insert(0, Add(tensors(benchmark.train_stream[0]), in_place))
        strategy.train(benchmark.train_stream[1])
        found.append({n: p.detach() for n, p in model.named_parameters()})
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_a_loader_knows_the_only_task_of_its_batches():
    one, several = (
        [torch.zeros(6, 2), torch.arange(6), torch.tensor(labels)]
        for labels in ([3] * 6, [3, 3, 3, 3, 3, 4])
    )
    for columns, known in ((one, 3), (several, None), (one[:2], None)):
        strategy = type("S", (), {"device": CPU, "plugins": []})()
        strategy.dataloader = DataLoader(TensorDataset(*columns), 4)
        InMemoryPlugin().before_training_epoch(strategy)
        batch = next(iter(strategy.dataloader))
        assert strategy.dataloader.only_task(batch[-1]) == known
        assert strategy.dataloader.only_task(batch[-1].clone()) is None


def test_copies_and_checkpoints_come_without_the_data(tmp_path):
    benchmark = task_stream(2)
    strategy = naive(MultiHead(), InMemoryPlugin(memory_limit=2**20, deterministic=[Jitter]))
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream)
    (plugin,) = (p for p in strategy.plugins if isinstance(p, InMemoryPlugin))
    assert len(plugin._store._entries) == 3
    for other in (copy.deepcopy(plugin), pickle.loads(pickle.dumps(plugin))):
        assert not other._store._entries
        assert other._store.memory_limit == 2**20
        assert other._store.deterministic == (Jitter,)
    assert len(plugin._store._entries) == 3
    assert len(pickle.dumps(plugin)) < 2000


class TransformedSubset(Subset):
    def __init__(self, dataset, indices, added):
        super().__init__(dataset, indices)
        self.added = added

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + self.added, y

    def __getitems__(self, indices):
        return [self[index] for index in indices]


class TransformedConcat(ConcatDataset):
    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + 1, y


class Scaled:
    def __init__(self, transform, factor):
        self.transform, self.factor = transform, factor

    def __call__(self, x):
        return self.factor * self.transform(x)


def test_keys_do_not_look_through_what_has_its_own_samples_or_calls():
    data = TensorDataset(torch.zeros(4, 2), torch.arange(4))
    parts = [TransformedSubset(data, range(4), added) for added in (1, 2)]
    assert len({key(parts[0]), key(parts[1]), key(data), key(Subset(data, range(4)))}) == 3
    assert key(TransformedConcat([data])) != key(ConcatDataset([data]))
    store = TensorStore(2**20)
    first, second = (store.get(p, torch.utils.data.default_collate, CPU)[0] for p in parts)
    assert first.unique().tolist() == [1.0]
    assert second.unique().tolist() == [2.0]

    def transformed(*pair):
        groups = TransformGroups({"train": pair, "eval": pair})
        return key(AvalancheDataset([data], transform_groups=groups))

    double = v1.Lambda(lambda x: 2 * x)
    assert transformed(Scaled(double, 2), None) != transformed(Scaled(double, 3), None)
    assert transformed(double, None) != transformed(None, double)
    assert transformed(double, None) == transformed(double, None)


def test_keys_of_labels_tell_types_apart_and_may_be_empty():
    data = TensorDataset(torch.zeros(2, 2), torch.arange(2))

    def labelled(value, n=2):
        dataset = AvalancheDataset([data]).subset(range(n))
        labels = TaskLabels(ConstantSequence(value, n))
        return dataset.update_data_attribute("targets_task_labels", labels)

    assert len({key(labelled(v)) for v in (0, 0.0, False)}) == 3
    key(labelled(0, n=0))


def test_collate_functions_are_part_of_the_key_for_as_long_as_it_lives():
    data = TensorDataset(torch.zeros(3, 2))
    store = TensorStore(2**20)
    for k in range(10):

        def collate(batch, k=k):
            return [torch.full((len(batch),), k)]

        assert store.get(data, collate, CPU)[0].unique().tolist() == [k]


class Plus(DataLoader):
    def __iter__(self):
        for x, y in super().__iter__():
            yield x + 100, y


def test_loaders_with_batches_of_their_own_are_left():
    loader = Plus(TensorDataset(torch.zeros(4, 2), torch.arange(4)), 2)
    strategy = type("S", (), {"dataloader": loader, "device": CPU, "plugins": []})()
    with pytest.warns(UserWarning, match="cannot serve a Plus"):
        InMemoryPlugin().before_training_epoch(strategy)
    assert strategy.dataloader is loader


@pytest.mark.parametrize("last", [torch.ones(1), torch.ones(2, dtype=torch.float64)])
def test_samples_are_neither_broadcast_nor_cast(last):
    data = [(torch.zeros(2), 0)] * 256 + [(last, 0)]
    with pytest.raises(ValueError, match="same shape and type"):
        TensorStore(2**20).get(data, torch.utils.data.default_collate, CPU)


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


@pytest.mark.parametrize("wrong", [3, "yes", InMemoryPlugin()])
def test_the_switch_of_the_template_is_a_boolean(wrong):
    with pytest.raises(TypeError, match="in_memory must be True or False"):
        learner(hyper_model(), in_memory=wrong)
