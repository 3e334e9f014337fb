"""InMemoryPlugin against Avalanche's own loaders and against a plain loop."""

import copy
import pickle

import pytest
import torch
import torchvision.transforms as v1
from avalanche.benchmarks import benchmark_from_datasets, with_task_labels
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.benchmarks.utils import TransformGroups, make_avalanche_dataset
from avalanche.models import MultiHeadClassifier
from avalanche.training import GDumb, JointTraining, Naive, Replay
from avalanche.training.plugins import ReplayPlugin, SupervisedPlugin
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from avalanche_hnet import FixedTarget, InMemoryPlugin, PriorEWCPlugin
from avalanche_hnet.benchmarks import SplitDigits
from avalanche_hnet.data.loader import InMemoryLoader
from tests.support.hypernets import hyper_model, learner
from tests.support.in_memory import CPU, Batches, Jitter
from tests.support.models import MultiHead, mlp
from tests.support.strategies import naive
from tests.support.streams import regression_stream, task_stream, tensors, two_tasks_in_one

pytestmark = pytest.mark.in_memory


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


def test_memory_limit():
    benchmark = task_stream(1, n_samples=1000)
    model = MultiHead()
    strategy = naive(model, InMemoryPlugin(memory_limit=30_000))
    with pytest.raises(ValueError, match=r"need 40,000 bytes, .* is 30,000"):
        strategy.train(benchmark.train_stream[0])
    assert strategy.clock.train_iterations == 0
    naive(model, InMemoryPlugin(memory_limit=50_000)).train(benchmark.train_stream[0])


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
