"""What a HyperModel refuses."""

import pytest
import torch
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, SimpleMLP, as_multitask
from torch import nn

from avalanche_hnet import FixedTarget, HyperModel
from tests.support.hypernets import adapted, hyper_model, hypernetwork, learner
from tests.support.models import OwnParameter, mlp
from tests.support.streams import task_stream


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        (nn.Sequential(nn.Linear(6, 4), IncrementalClassifier(4)), r"IncrementalClassifier \(1\)"),
        (nn.Sequential(nn.Linear(6, 4), MultiHeadClassifier(4)), "MultiHeadClassifier"),
        (as_multitask(SimpleMLP(num_classes=2, input_size=6), "classifier"), r"\(itself\)"),
    ],
)
def test_targets_that_grow_are_refused(target, kind):
    with pytest.raises(ValueError, match=f"target has a .*{kind}.*multi_head=True"):
        hyper_model(target)


def test_the_hypernetwork_of_another_target_is_refused():
    with pytest.raises(ValueError, match=r"generates '2.weight' of shape \(3, 8\), .* \(2, 8\)"):
        HyperModel(mlp(n_out=2), hypernetwork(mlp(n_out=3)))
    with pytest.raises(ValueError, match=r"generates 'matrix' .* has none"):
        HyperModel(mlp(n_out=3), hypernetwork(OwnParameter()))
    frozen = mlp(n_out=2)
    frozen[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"generates '0.weight' .* has none"):
        HyperModel(frozen, hypernetwork(mlp(n_out=2)))


def test_no_hypernetwork_is_refused():
    with pytest.raises(TypeError, match="hypernetwork must be a HyperNetwork, got Linear"):
        HyperModel(mlp(), nn.Linear(3, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remaining": "mine"}, "remaining must be one of .*'shared'.*, got 'mine'"),
        ({"output_layer": "2"}, "output_layer='2' needs multi_head=True"),
        ({"multi_head": True, "output_layer": "3"}, "output_layer='3' is no layer .* are 0, 2"),
        ({"multi_head": True, "output_layer": "1"}, "output_layer='1' is no layer"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        hyper_model(**options)


def test_a_target_without_linear_layer_must_name_its_output_layer():
    with pytest.raises(ValueError, match="no linear layer; name its output layer"):
        hyper_model(nn.Conv1d(2, 3, 1), multi_head=True)


def test_an_output_layer_that_is_not_the_output_is_refused():
    model = hyper_model(mlp(n_out=4), multi_head=True, output_layer="0")
    adapted(model, task_stream(1).train_stream)
    message = "the target has 4 outputs, but its layer '0' has 8 units; name the output layer"
    with pytest.raises(ValueError, match=message):
        model(torch.randn(3, 6), 0)


def test_masks_of_an_output_layer_that_is_not_generated_are_refused():
    model = hyper_model(mlp(n_out=4), hypernet={"generate": "0.*"}, multi_head=True)
    with pytest.raises(ValueError, match=r"mask_heads=True.*output layer that is generated"):
        learner(model, FixedTarget(mask_heads=True))


def test_masks_of_a_tied_output_layer_are_those_of_the_other():
    target = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    target[2].weight = target[0].weight
    model = hyper_model(target, multi_head=True)
    assert model.generated_heads == {"0.weight", "2.bias"}


def test_one_label_for_all_is_warned_of():
    strategy = learner(hyper_model(), FixedTarget())
    stream = task_stream(task_labels=[0, 0]).train_stream
    strategy.train(stream[0])
    with pytest.warns(UserWarning, match=r"nothing is protected.*task labels \[0\]"):
        strategy.train(stream[1])
