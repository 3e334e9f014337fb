"""What a model says of the names of its parameters."""

import pytest
import torch
from torch import nn

from tests.support.hypernets import adapted, hyper_model
from tests.support.streams import task_stream


def model_of(n_out=2, **options):
    """The last layer is generated; the first, and running statistics, are not."""
    target = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, n_out))
    model = hyper_model(target, hypernet={"generate": "3.*"}, **options)
    return adapted(model, task_stream(2).train_stream)


@pytest.mark.parametrize("remaining", ["shared", "per_task"])
def test_parameters_of_the_hypernetwork_by_their_own_names(remaining):
    model = model_of(remaining=remaining)
    of_hypernetwork = model.of_hypernetwork(dict(model.named_parameters()))
    expected = dict(model.hypernetwork.named_parameters())
    assert of_hypernetwork.keys() == expected.keys()
    assert all(of_hypernetwork[name] is expected[name] for name in expected)


@pytest.mark.parametrize("multi_head", [False, True])
def test_generated_parameters_of_a_main_network_as_one_vector(multi_head):
    model = model_of(4 if multi_head else 2, multi_head=multi_head)
    flat = model.flatten_main_network(dict(model.main_network(1).named_parameters()))
    assert torch.equal(flat, model.hypernetwork(1)[0])
