from math import prod

import pytest
import torch

from avalanche_hnet import BlockMultiHeadClassifier, active_elements
from tests.support.models import MultiHead
from tests.support.streams import adapt, labelled_benchmark, task_stream


@pytest.mark.parametrize("offset", [False, True])
def test_block_head_is_rows_of_one_layer(offset):
    stream = task_stream(3, offset=offset).train_stream
    head = BlockMultiHeadClassifier(6)
    for experience in stream:
        adapt(head, experience)
    assert head.classifier.weight.shape == (6, 6)
    x, labels = torch.randn(5, 6), torch.tensor([0, 2, 1, 1, 0])
    output = head(x, labels)
    for n, task in enumerate(labels.tolist()):
        units = head.classifier.weight[2 * task : 2 * task + 2] @ x[n]
        units = units + head.classifier.bias[2 * task : 2 * task + 2]
        columns = [2 * task, 2 * task + 1] if offset else [0, 1]
        torch.testing.assert_close(output[n, columns], units)
        others = [c for c in range(output.shape[1]) if c not in columns]
        assert (output[n, others] == -1000).all()
    torch.testing.assert_close(head(x, 1), head(x, torch.ones(5, dtype=torch.long)))
    assert set(head(x, None)) == {0, 1, 2}
    torch.testing.assert_close(head(x, None)[2], head.forward_single_task(x, 2))


def test_block_head_keeps_what_it_knows_while_it_grows():
    stream = task_stream(2).train_stream
    head = adapt(BlockMultiHeadClassifier(6), stream[0])
    x = torch.randn(4, 6)
    before = head(x, 0)
    adapt(head, stream[1])
    adapt(head, stream[1])
    assert head.unit_tasks.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(head(x, 0), before)
    assert active_elements(head, stream[1])["classifier.bias"].tolist() == [False] * 2 + [True] * 2


def test_block_head_does_not_learn_tasks_from_an_evaluation():
    stream = task_stream(2, offset=True).train_stream
    head = adapt(BlockMultiHeadClassifier(6), stream[0])
    adapt(head, stream[1], training=False)
    output = head(torch.randn(3, 6), 1)
    assert output.shape == (3, 4)
    assert (output == -1000).all()


def test_block_head_state_fits_a_fresh_one():
    stream = task_stream(3).train_stream
    model, fresh = MultiHead(BlockMultiHeadClassifier(8)), MultiHead(BlockMultiHeadClassifier(8))
    for experience in stream:
        adapt(model, experience)
    fresh.load_state_dict(model.state_dict())
    x, labels = torch.randn(5, 6), torch.tensor([0, 2, 1, 1, 0])
    torch.testing.assert_close(fresh(x, labels), model(x, labels))
    assert set(fresh(x, None)) == {0, 1, 2}
    torch.testing.assert_close(fresh(x, None), model(x, None))


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_block_head_without_classes_has_a_unit_for_each_component(shape):
    """In a regression whose experiences do not say what their classes are."""
    count = prod(shape)
    data = [(torch.randn(5, 6), torch.randn(5, *shape)) for _ in range(2)]
    stream = labelled_benchmark(data).train_stream
    head = adapt(BlockMultiHeadClassifier(6), stream[0])
    adapt(head, stream[1], training=False)  # adds nothing
    assert head.unit_tasks.tolist() == [0] * count
    assert head.known_train_tasks_labels == {0}
    assert (head(torch.randn(4, 6), 1) == -1000).all()
    adapt(head, stream[1])
    assert head.unit_tasks.tolist() == [0] * count + [1] * count
    assert head.known_train_tasks_labels == {0, 1}
    x = torch.randn(4, 6)
    rows = slice(count, 2 * count)
    layer = head.classifier
    torch.testing.assert_close(head(x, 1), x @ layer.weight[rows].T + layer.bias[rows])
    assert set(head(x, None)) == {0, 1}
    active = active_elements(head, stream[1])["classifier.bias"].tolist()
    assert active == [False] * count + [True] * count


def test_infinite_output_of_one_task_stays_there():
    head = BlockMultiHeadClassifier(6)
    for experience in task_stream(2).train_stream:
        adapt(head, experience)
    with torch.no_grad():
        head.classifier.bias[0] = float("inf")
    assert head(torch.randn(3, 6), 1).isfinite().all()


def test_block_head_refuses_no_features():
    with pytest.raises(ValueError, match="in_features must be at least 1, got 0"):
        BlockMultiHeadClassifier(0)
