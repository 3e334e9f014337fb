"""Collate functions that do more than put samples side by side."""

import warnings

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, with_task_labels
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import default_collate

from avalanche_hnet import InMemoryPlugin, PriorEWCPlugin
from avalanche_hnet.data.store import TensorStore
from avalanche_hnet.data.unkeepable import UnsplittableError

CPU = torch.device("cpu")


def columns(batch):
    x, y, t = zip(*batch, strict=True)
    return [nn.utils.rnn.pad_sequence(list(x), True), torch.tensor(y), torch.tensor(t)]


def padded(batch):
    return columns(batch)


def padded_to_ten(batch):
    x, y, t = columns(batch)
    return [nn.functional.pad(x, (0, 10 - x.shape[1])), y, t]


def centred(batch):
    x, y, t = padded_to_ten(batch)
    return [x - x.mean(0), y, t]


def by_length(batch):
    return padded_to_ten(sorted(batch, key=lambda sample: len(sample[0])))


def numbered(batch):
    x, y, t = padded_to_ten(batch)
    x[:, -1] = torch.arange(len(x))
    return [x, y, t]


def doubled(batch):
    x, y, t = padded_to_ten(batch)
    return [2 * x, y, t]


def experience_of(samples, collate):
    labels = DataAttribute([0] * len(samples), "targets_task_labels", use_in_getitem=True)
    data = AvalancheDataset([samples], data_attributes=[labels], collate_fn=collate)
    (experience,) = with_task_labels(benchmark_from_datasets(train=[data])).train_stream
    return experience


class Seen(nn.Module):
    """A small network that keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 2)
        self.batches = []

    def forward(self, x):
        self.batches.append(x)
        return self.layer(x.mean(1, keepdim=True))


def train(experience, *plugins, shuffle=True):
    torch.manual_seed(0)
    model = Seen()
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        train_mb_size=2,
        train_epochs=2,
        plugins=[*plugins],
        evaluator=EvaluationPlugin(loggers=[]),
    )
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        strategy.train(experience, shuffle=shuffle)
    ours = [w for w in raised if "cannot be cut" in str(w.message) or "kept" in str(w.message)]
    return model, ours


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    collate=st.sampled_from([padded, padded_to_ten, centred, by_length, numbered, doubled]),
    shuffle=st.booleans(),
)
def test_batches_are_those_of_avalanche(lengths, collate, shuffle):
    samples = [(torch.rand(n), n % 2) for n in lengths]
    experience = experience_of(samples, collate)
    plain, _ = train(experience, shuffle=shuffle)
    served, raised = train(experience, InMemoryPlugin(), shuffle=shuffle)
    assert len(plain.batches) == len(served.batches)
    for ours, theirs in zip(served.batches, plain.batches, strict=True):
        assert torch.equal(ours, theirs)
    assert len(raised) <= 1
    if collate in (padded_to_ten, doubled):
        assert not raised


@pytest.mark.parametrize("collate", [padded, centred, by_length, numbered])
def test_what_depends_on_the_batch_is_left_to_its_loader_with_one_warning(collate):
    samples = [(torch.rand(n), n % 2) for n in (2, 3, 4, 9, 5)]
    _, raised = train(experience_of(samples, collate), InMemoryPlugin())
    (warning,) = raised
    assert f"{collate.__name__!r} makes something else" in str(warning.message)
    assert "Avalanche's own loader serves them" in str(warning.message)


@pytest.mark.parametrize("collate", [padded_to_ten, doubled])
def test_what_treats_samples_one_by_one_is_kept(collate):
    samples = [(torch.rand(n), n % 2, 0) for n in (2, 3, 4, 9, 5)]
    store = TensorStore(10**6)
    kept = store.get(samples, collate, CPU)
    for ours, theirs in zip(kept, collate(samples), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("order", [(2, 3, 4, 9), (9, 4, 3, 2)])
def test_sorting_is_found_where_the_data_are_sorted_already(order):
    samples = [(torch.rand(n), n % 2, 0) for n in order]
    with pytest.raises(UnsplittableError, match="by_length"):
        TensorStore(10**6).get(samples, by_length, CPU)


def test_what_cannot_be_split_is_read_in_vain_only_once():
    reads = []

    class Data(list):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    samples = Data((torch.rand(n), n % 2, 0) for n in (2, 3, 4, 9))
    store = TensorStore(10**6)
    for _ in range(3):
        with pytest.raises(UnsplittableError):
            store.get(samples, padded, CPU)
        before, reads = len(reads), []
    assert before == 0


def test_dictionaries_are_left_to_their_loader():
    class Reader(Naive):
        @property
        def mb_x(self):
            return self.mbatch["x"]

        @property
        def mb_y(self):
            return self.mbatch["y"]

        @property
        def mb_task_id(self):
            return self.mbatch["t"]

        def _unpack_minibatch(self):
            self.mbatch = {name: tensor.to(self.device) for name, tensor in self.mbatch.items()}

    def as_dictionary(batch):
        return dict(zip("xyt", default_collate([tuple(s) for s in batch]), strict=True))

    experience = experience_of([(torch.rand(3), n % 2) for n in range(6)], as_dictionary)
    weights = []
    for plugins in ([], [InMemoryPlugin()]):
        torch.manual_seed(0)
        model = Seen()
        strategy = Reader(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), 0.1),
            train_mb_size=2,
            plugins=plugins,
            evaluator=EvaluationPlugin(loggers=[]),
        )
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            strategy.train(experience)
        weights.append(model.layer.weight.detach())
    assert torch.equal(*weights)
    assert sum("but a batch of them is" in str(w.message) for w in raised) == 1


def test_fisher_of_padded_sequences():
    samples = [(torch.rand(n), n % 2) for n in (2, 3, 4, 9)]
    experience = experience_of(samples, padded)
    with_memory, without = PriorEWCPlugin(), PriorEWCPlugin()
    train(experience, with_memory, InMemoryPlugin())
    train(experience, without)
    for name, precision in without.posterior.precision.items():
        assert torch.equal(with_memory.posterior.precision[name], precision)
