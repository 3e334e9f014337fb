import pytest
import torch
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, SimpleMLP, as_multitask
from torch import nn

from avalanche_hnet import HasActiveElements, active_elements
from tests.support.models import Incremental, MultiHead, mlp
from tests.support.streams import adapt, task_stream, two_tasks_in_one


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


class OwnMask(nn.Module):
    """Its mask is a buffer of its own, which it goes on changing."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3))
        self.register_buffer("mask", torch.tensor([True, False, True]))

    def active_elements(self, experience):
        return {"weight": self.mask}


def test_masks_are_the_callers_own():
    model, experience = OwnMask(), task_stream(1).train_stream[0]
    found = active_elements(model, experience)["weight"]
    model.mask.fill_(False)
    assert found.tolist() == [[True, False, True]] * 2
    found[0, 0] = False
    assert found[1, 0]
