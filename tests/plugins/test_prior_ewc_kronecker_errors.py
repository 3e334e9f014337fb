"""What prior-focused learning with Kronecker products refuses."""

import pytest
import torch
from torch import nn

from avalanche_hnet import PriorEWCPlugin
from tests.support.models import mlp
from tests.support.strategies import naive, run
from tests.support.streams import task_stream


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"structure": "full"}, r"structure must be one of .*kronecker.*got 'full'"),
        ({"structure": None}, r"structure must be one of .*got None"),
        ({"structure": "kronecker", "rank": 0}, "rank must be an integer of at least 1.*got 0"),
        ({"structure": "kronecker", "rank": -1}, "rank must be an integer of at least 1.*got -1"),
        ({"structure": "kronecker", "rank": 1.5}, "rank must be an integer .*got 1.5"),
        (
            {"structure": "kronecker", "weight_sharing": "share"},
            r"weight_sharing must be one of .*expand.*reduce.*got 'share'",
        ),
        ({"rank": 2}, "rank=2 needs structure='kronecker', got 'diagonal'"),
        ({"rank": None}, "rank=None needs structure='kronecker', got 'diagonal'"),
        ({"weight_sharing": "reduce"}, "weight_sharing='reduce' needs structure='kronecker'"),
        ({"weight_sharing": "share"}, "weight_sharing"),
        ({"rank": 0}, "rank"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PriorEWCPlugin(**arguments)


def learned(**options):
    stream, model = task_stream(2, task_labels=[0, 0]).train_stream, mlp(n_out=2)
    plugin = PriorEWCPlugin(**options)
    run(plugin, model, stream)
    return plugin.posterior


KRONECKER = {"structure": "kronecker"}


@pytest.mark.parametrize(
    ("of_state", "of_plugin", "message"),
    [
        ({}, KRONECKER, r"must be that of a KroneckerPosterior.*structure='diagonal'"),
        (KRONECKER, {}, r"must be that of a GaussianPosterior.*structure='kronecker'"),
        (KRONECKER | {"rank": 2}, KRONECKER, "rank=2, but this posterior has 1"),
        (KRONECKER, KRONECKER | {"rank": None}, "rank=1, but this posterior has None"),
        (KRONECKER | {"weight_sharing": "reduce"}, KRONECKER, "weight_sharing='reduce', but"),
        (KRONECKER | {"prior_variance": 2.0}, KRONECKER, "prior_variance=2.0, but"),
        (KRONECKER | {"prior_mean": "initial"}, KRONECKER, "prior_mean='initial', but"),
    ],
)
def test_states_of_other_posteriors_are_refused_and_change_nothing(of_state, of_plugin, message):
    state = learned(**of_state).state_dict()
    for posterior in (learned(**of_plugin), PriorEWCPlugin(**of_plugin).posterior):
        mean, precision = dict(posterior.mean), dict(posterior.precision)
        likelihood = posterior.likelihood
        with pytest.raises(ValueError, match=message):
            posterior.load_state_dict(state)
        assert posterior.mean.keys() == mean.keys()
        assert all(torch.equal(posterior.mean[n], m) for n, m in mean.items())
        assert all(torch.equal(posterior.precision[n], p) for n, p in precision.items())
        assert posterior.likelihood is likelihood


def grouped():
    layers = nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 4, 2, groups=2), nn.Tanh(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(8, 2))


def grow(model):
    """Two rows more for the convolution, whose rows then belong to other groups."""
    old, new = model[1], nn.Conv1d(2, 6, 2, groups=2)
    with torch.no_grad():
        new.weight[:4], new.bias[:4] = old.weight, old.bias
    model[1] = new
    model[3] = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (6, 2)), Rows(4))


class Rows(nn.Module):
    """The first rows alone, so that the layer that follows needs not grow."""

    def __init__(self, n):
        super().__init__()
        self.n = n

    def forward(self, x):
        return x[:, : self.n].flatten(1)


def test_layers_with_groups_may_be_trained_but_not_grow():
    stream, model = task_stream(2, task_labels=[0, 0]).train_stream, grouped()
    plugin = PriorEWCPlugin(structure="kronecker")
    strategy = naive(model, plugin)
    strategy.train(stream[0])
    assert plugin.posterior._parts.layers.keys() == {"1", "4"}
    before = plugin.posterior.state_dict()["mean"]
    grow(model)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match=r"'1\.weight' has 2 groups and has grown to 6 rows"):
        strategy.train(stream[1])
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    after = plugin.posterior.mean
    assert before.keys() == after.keys()
    assert all(torch.equal(after[n], m) for n, m in before.items())


def test_with_a_diagonal_they_may():
    stream, model = task_stream(2, task_labels=[0, 0]).train_stream, grouped()
    strategy = naive(model, PriorEWCPlugin())
    strategy.train(stream[0])
    grow(model)
    strategy.train(stream[1])


def test_a_model_of_another_state_is_refused_before_training():
    stream, model = task_stream(2, task_labels=[0, 0]).train_stream, mlp(n_out=2)
    plugin = PriorEWCPlugin(structure="kronecker")
    run(plugin, model, stream[:1])
    fresh = PriorEWCPlugin(structure="kronecker")
    fresh.posterior.load_state_dict(plugin.posterior.state_dict())
    other = mlp(n_out=2)
    before = {n: p.detach().clone() for n, p in other.named_parameters()}
    with pytest.raises(ValueError, match="not at the mean of the loaded posterior"):
        naive(other, fresh).train(stream[1])
    assert all(torch.equal(p, before[n]) for n, p in other.named_parameters())


def test_shapes_that_shrink_are_refused():
    stream, model = task_stream(2, task_labels=[0, 0]).train_stream, mlp(n_out=3)
    plugin = PriorEWCPlugin(structure="kronecker")
    strategy = naive(model, plugin)
    strategy.train(stream[0])
    model[2] = nn.Linear(8, 2)
    with pytest.raises(ValueError, match=r"'2\.weight'|'2\.bias'"):
        strategy.train(stream[1])
