"""One pass over a data set, with a store and without."""

import pytest
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.utils.data import Dataset

from avalanche_hnet import InMemoryPlugin, PriorEWCPlugin
from avalanche_hnet.data.in_order import batches_in_order
from avalanche_hnet.data.store import TensorStore
from avalanche_hnet.data.unkeepable import UnkeepableError
from avalanche_hnet.plugins.in_memory import store_of

CPU = torch.device("cpu")


class Numbered(Dataset):
    """Ten samples; counts how often one is read, and may be broken for a while."""

    targets = [0] * 10

    def __init__(self):
        self.n_read, self.n_broken = 0, 0

    def __len__(self):
        return 10

    def __getitem__(self, index):
        self.n_read += 1
        if self.n_broken:
            self.n_broken -= 1
            raise ValueError("a broken file")
        return torch.tensor([float(index)]), 0


def inputs(*args, **options):
    return [batch[0][:, 0].tolist() for batch in batches_in_order(*args, **options)]


@pytest.mark.parametrize("store", [None, TensorStore(2**20), TensorStore(1)])
def test_batches_are_in_order(store):
    data = AvalancheDataset([Numbered()])
    assert inputs(data, store, CPU, 4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    rows = torch.tensor([7, 0, 3])
    assert inputs(data, store, CPU, 2, rows=rows) == [[7, 0], [3]]


def test_a_few_rows_are_not_a_reason_to_keep_all():
    source = Numbered()
    data, store = AvalancheDataset([source]), TensorStore(2**20)
    assert inputs(data, store, CPU, 2, rows=torch.tensor([5])) == [[5]]
    assert source.n_read == 1
    assert not store.holds(data, data.collate_fn, CPU)
    inputs(data, store, CPU, 2)
    before = source.n_read
    assert inputs(data, store, CPU, 2, rows=torch.tensor([5])) == [[5]]
    assert source.n_read == before


def test_what_cannot_be_kept_is_told_from_errors_of_the_data():
    source = Numbered()
    data = AvalancheDataset([source])
    with pytest.raises(UnkeepableError, match="memory_limit is 1"):
        TensorStore(1).get(data, data.collate_fn, CPU)
    source.n_broken = 1
    with pytest.raises(ValueError, match="a broken file") as error:
        inputs(data, TensorStore(2**20), CPU, 4)
    assert not isinstance(error.value, UnkeepableError)


def strategy_with(*plugins):
    model = nn.Linear(2, 2)
    return Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        plugins=[*plugins],
        evaluator=EvaluationPlugin(loggers=[]),
    )


@pytest.mark.in_memory
def test_store_of_a_strategy():
    plugin = InMemoryPlugin()
    assert store_of(strategy_with(PriorEWCPlugin(), plugin)) is plugin.store
    assert store_of(strategy_with(PriorEWCPlugin())) is None
    with pytest.raises(AttributeError):
        plugin.store = None
