import pytest
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from torch.utils.data import Dataset, TensorDataset

from avalanche_hnet.data.store import TensorStore
from tests.support.in_memory import CPU

pytestmark = pytest.mark.in_memory


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


def test_collate_functions_are_part_of_the_key_for_as_long_as_it_lives():
    data = TensorDataset(torch.zeros(3, 2))
    store = TensorStore(2**20)
    for k in range(10):

        def collate(batch, k=k):
            return [torch.full((len(batch),), k)]

        assert store.get(data, collate, CPU)[0].unique().tolist() == [k]


@pytest.mark.parametrize("last", [torch.ones(1), torch.ones(2, dtype=torch.float64)])
def test_samples_are_neither_broadcast_nor_cast(last):
    data = [(torch.zeros(2), 0)] * 256 + [(last, 0)]
    with pytest.raises(ValueError, match="same shape and type"):
        TensorStore(2**20).get(data, torch.utils.data.default_collate, CPU)
