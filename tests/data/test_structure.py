"""Keys of data sets: what is the same, and what is not."""

import pytest
import torch
import torchvision.transforms as v1
import torchvision.transforms.v2 as v2
from avalanche.benchmarks.utils import (
    AvalancheDataset,
    ConstantSequence,
    TaskLabels,
    TransformGroups,
)
from torch import nn
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from avalanche_hnet.data.store import TensorStore
from avalanche_hnet.data.structure import Structure
from tests.support.in_memory import CPU

pytestmark = pytest.mark.in_memory


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
