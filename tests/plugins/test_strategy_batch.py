import pytest
import torch

from avalanche_hnet.plugins.strategy_batch import taken_apart
from tests.support.models import mlp
from tests.support.strategies import naive
from tests.support.structures import DictionaryNaive

X, Y, T = torch.randn(4, 6), torch.arange(4), torch.zeros(4).long()


@pytest.mark.parametrize("with_task_labels", [False, True])
def test_the_strategy_reads_a_batch_and_keeps_its_own(with_task_labels):
    of_lists = naive(mlp())
    of_dictionaries = naive(mlp(), strategy=DictionaryNaive)
    dictionary = {"a": X[:, :3], "b": X[:, 3:], "y": Y, "targets_task_labels": T}
    for strategy, batch in ((of_lists, (X, Y, T)), (of_dictionaries, dictionary)):
        strategy.mbatch = before = object()
        columns = taken_apart(strategy, batch, with_task_labels=with_task_labels)
        assert strategy.mbatch is before
        assert torch.equal(columns[1], Y)
        assert len(columns) == 2 + with_task_labels
        if strategy is of_dictionaries:
            assert [*columns[0]] == ["a", "b"]


def test_the_batch_is_put_back_after_an_error():
    strategy = naive(mlp())
    strategy.mbatch = before = object()
    with pytest.raises(KeyError):
        taken_apart(strategy, {"a": X}, with_task_labels=False)
    assert strategy.mbatch is before
