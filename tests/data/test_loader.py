import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from avalanche_hnet import InMemoryPlugin
from tests.support.in_memory import CPU

pytestmark = pytest.mark.in_memory


class Endless(IterableDataset):
    def __iter__(self):
        yield from [(torch.ones(6), 0)] * 5


@pytest.mark.parametrize("loader", [[1, 2], DataLoader(Endless(), 2)], ids=["list", "iterable"])
def test_other_loaders_are_left_with_a_warning(loader):
    strategy = type("S", (), {"dataloader": loader, "device": CPU, "plugins": []})()
    with pytest.warns(UserWarning, match=rf"cannot serve a {type(loader).__name__}"):
        InMemoryPlugin().before_training_epoch(strategy)
    assert strategy.dataloader is loader


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
