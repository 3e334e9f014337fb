from math import prod

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, with_task_labels
from avalanche.benchmarks.utils import AvalancheDataset, ConstantSequence, TaskLabels
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, SimpleMLP, as_multitask
from torch import nn
from torch.utils.data import TensorDataset

from avalanche_hnet import BlockMultiHeadClassifier, HasActiveElements, active_elements
from tests.models import Incremental, MultiHead, mlp
from tests.streams import task_stream, two_tasks_in_one


def adapt(model, experience, training=True):
    model.train(training)
    for module in model.modules():
        if hasattr(module, "adaptation"):
            module.adaptation(experience)
    return model


def labelled_benchmark(data):
    """Experiences of [(x, y), ...] with the task labels 0, 1, ..., and nothing about classes."""
    datasets = [
        AvalancheDataset(
            [TensorDataset(x, y)], data_attributes=[TaskLabels(ConstantSequence(label, len(x)))]
        )
        for label, (x, y) in enumerate(data)
    ]
    return with_task_labels(benchmark_from_datasets(train=datasets))


def names_with(active, value):
    return {n for n, mask in active.items() if (mask == value).all()}


def test_a_plain_model_is_active_as_a_whole():
    model = mlp()
    active = active_elements(model, task_stream(1).train_stream[0])
    assert {n: m.shape for n, m in active.items()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    assert all(m.all() for m in active.values())


def test_frozen_parameters_are_not_mentioned():
    model = mlp()
    model[0].requires_grad_(False)
    assert set(active_elements(model, task_stream(1).train_stream[0])) == {"2.weight", "2.bias"}


def test_multi_head_deep_inside_a_model():
    stream = task_stream(3).train_stream
    model = MultiHead()
    for experience in stream:
        adapt(model, experience)
    active = active_elements(model, stream[1])
    head = "output.head.classifiers.{}.classifier.{}"
    assert names_with(active, False) == {
        head.format(t, p) for t in (0, 2) for p in ("weight", "bias")
    }
    assert names_with(active, True) == active.keys() - names_with(active, False)


def test_multi_head_masks_units_of_classes_that_the_task_does_not_have():
    stream = task_stream(2, offset=True).train_stream
    model = MultiHead()
    for experience in stream:
        adapt(model, experience)
    active = active_elements(model, stream[1])
    name = "output.head.classifiers.1.classifier"
    assert active[f"{name}.bias"].tolist() == [False, False, True, True]
    assert active[f"{name}.weight"].all(1).tolist() == [False, False, True, True]
    assert active[f"{name}.weight"].any(1).tolist() == [False, False, True, True]


def test_experience_with_several_tasks_activates_several_heads():
    stream = task_stream(3).train_stream
    model = MultiHead(MultiHeadClassifier(8, masking=False))
    for experience in stream:
        adapt(model, experience)
    off = names_with(active_elements(model, two_tasks_in_one(stream[0], stream[2])), False)
    assert {n.split(".")[3] for n in off} == {"1"}


def test_growing_softmax_masks_classes_that_were_never_seen():
    stream = task_stream(3, offset=True, task_labels=[0, 0, 0]).train_stream
    model = Incremental()
    adapt(model, stream[0])
    adapt(model, stream[1])
    adapt(model, stream[2], training=False)  # an evaluation grows it, but has seen nothing
    active = active_elements(model, stream[1])
    assert active["head.classifier.bias"].tolist() == [True] * 4 + [False] * 2
    unmasked = adapt(IncrementalClassifier(6, masking=False), stream[2])
    assert active_elements(unmasked, stream[2])["classifier.bias"].all()


def test_as_multitask():
    stream = task_stream(2, n_in=6).train_stream
    model = as_multitask(SimpleMLP(num_classes=2, input_size=6, hidden_size=4), "classifier")
    for experience in stream:
        adapt(model, experience)
    off = names_with(active_elements(model, stream[1]), False)
    assert off == {f"classifier.classifiers.0.classifier.{p}" for p in ("weight", "bias")}


class HalfOfAvalanches(IncrementalClassifier):
    def active_elements(self, experience):
        return {"classifier.bias": torch.tensor([True, False])}


def test_subclass_of_avalanches_head_says_it_itself():
    head = HalfOfAvalanches(4)
    active = active_elements(head, task_stream(1).train_stream[0])
    assert active["classifier.bias"].tolist() == [True, False]


class HalfActive(nn.Linear):
    def active_elements(self, experience):
        return {"weight": torch.arange(self.out_features)[:, None] < 2}


def test_a_users_module_says_it_itself():
    model = nn.Sequential(nn.Linear(4, 4), HalfActive(4, 4))
    assert isinstance(model[1], HasActiveElements)
    active = active_elements(model, task_stream(1).train_stream[0])
    assert active["1.weight"].all(1).tolist() == [True, True, False, False]
    assert active["1.bias"].all()
    assert active["0.weight"].all()


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"wight": torch.ones(4, dtype=torch.bool)}, "'1.wight', which is no parameter"),
        ({"weight": torch.ones(3, dtype=torch.bool)}, r"shape \(3,\)"),
        ({"bias": torch.ones(2, 4, dtype=torch.bool)}, r"shape \(2, 4\)"),
        ({"bias": torch.ones(4)}, "boolean"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks, message):
    model = nn.Sequential(nn.Linear(4, 4), HalfActive(4, 4))
    model[1].active_elements = lambda experience: masks
    with pytest.raises(ValueError, match=message):
        active_elements(model, task_stream(1).train_stream[0])


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
