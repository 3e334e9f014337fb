from statistics import NormalDist

import pytest
import torch
from torch import nn

from avalanche_hnet.benchmarks import Regression1D
from experiments.common.uncertainty.network import (
    GaussianActivation,
    MultiHeadNetwork,
    make_network,
)
from tests.support.uncertainty import options


@pytest.mark.parametrize(
    ("name", "kind"),
    [("Gaussian", GaussianActivation), ("ReLU", nn.ReLU), ("Tanh", nn.Tanh), ("ELU", nn.ELU)],
)
def test_network_has_the_layers_of_the_options(name, kind):
    network = make_network(options(hidden=(7, 5), activation=name), (-1, 1))
    assert [type(m) for m in network] == [nn.Linear, kind, nn.Linear, kind, nn.Linear]
    assert [m.out_features for m in network if isinstance(m, nn.Linear)] == [7, 5, 1]


def test_heads_share_the_features():
    network = make_network(options(head="multi"), (-1, 1))
    assert isinstance(network, MultiHeadNetwork)
    for experience in Regression1D().train_stream:
        network.head.adaptation(experience)
    x = torch.randn(6, 1)
    outputs = network(x, torch.tensor([0, 1, 2, 2, 1, 0]))
    assert outputs.shape == (6, 1)
    torch.testing.assert_close(outputs[2:4], network(x, 2)[2:4])


def test_gaussian_activation_is_the_bell():
    x = torch.linspace(-3, 3, 7)
    bell = NormalDist()
    expected = torch.tensor([bell.pdf(v) / bell.pdf(0) for v in x.tolist()])
    torch.testing.assert_close(GaussianActivation()(x), expected)


def test_units_are_spread_over_the_interval():
    first = make_network(options(hidden=(2000,), steepness=4.0), (-6, 2))[0]
    slopes, centres = first.weight[:, 0], -first.bias / first.weight[:, 0]
    assert slopes.abs().min() >= 2
    assert slopes.abs().max() <= 6
    assert (slopes > 0).float().mean() == pytest.approx(0.5, abs=0.05)
    assert -6.01 < centres.min() < -5.9
    assert 1.9 < centres.max() < 2.01
    assert centres.mean().item() == pytest.approx(-2, abs=0.2)


def test_steepness_zero_leaves_the_initial_weights():
    torch.manual_seed(1)
    network = make_network(options(steepness=0.0, hidden=(4,)), (-6, 6))
    torch.manual_seed(1)
    layer = nn.Linear(1, 4)
    assert torch.equal(network[0].weight, layer.weight)
    assert torch.equal(network[0].bias, layer.bias)
