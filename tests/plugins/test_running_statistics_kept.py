"""A batch that is refused leaves running statistics as they were."""

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import nn

from avalanche_hnet import FixedTarget, PriorEWCPlugin
from tests.support.hypernets import hyper_model, learner
from tests.support.models import mlp
from tests.support.strategies import naive
from tests.support.streams import task_stream


class OwnBuffer(nn.Module):
    """A buffer that each forward pass puts another in the place of."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), OwnBuffer(), nn.Tanh(), nn.Linear(8, 2)
    )


class Spoil(SupervisedPlugin):
    """Makes one batch NaN, and remembers the buffers before it."""

    def __init__(self, iteration):
        super().__init__()
        self.iteration, self.kept = iteration, None

    def before_training_iteration(self, strategy, **kwargs):
        if strategy.clock.train_exp_iterations == self.iteration:
            self.kept = {n: b.clone() for n, b in strategy.model.named_buffers()}
            strategy.mbatch[0] = strategy.mbatch[0] * float("nan")


def refused(strategy, spoil, experience, message="the loss is not finite"):
    with pytest.raises(ValueError, match=message):
        strategy.train(experience)
    after = dict(strategy.model.named_buffers())
    assert after.keys() == spoil.kept.keys()
    for name, buffer in after.items():
        assert torch.equal(buffer, spoil.kept[name]), name
    strategy.plugins.remove(spoil)
    strategy.train(experience)
    assert all(b.isfinite().all() for b in strategy.model.buffers())
    assert all(p.isfinite().all() for p in strategy.model.parameters())


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
@pytest.mark.parametrize("iteration", [0, 3])
def test_of_a_network(structure, iteration):
    stream, spoil = task_stream(2).train_stream, Spoil(iteration)
    strategy = naive(network(), spoil, PriorEWCPlugin(structure=structure))
    refused(strategy, spoil, stream[0])
    strategy.plugins.insert(0, spoil)
    refused(strategy, spoil, stream[1])


@pytest.mark.parametrize("iteration", [0, 3])
def test_of_a_hypernetworks_main_network(iteration):
    stream, spoil = task_stream(2).train_stream, Spoil(iteration)
    strategy = learner(hyper_model(network()), FixedTarget())
    strategy.train(stream[0])
    strategy.plugins.insert(0, spoil)
    refused(strategy, spoil, stream[1])


def test_targets_that_do_not_fit():
    """What is known at the first batch is refused after its forward pass."""

    class Relabel(Spoil):
        def before_training_iteration(self, strategy, **kwargs):
            super().before_training_iteration(strategy)
            strategy.mbatch[0] = strategy.mbatch[0].nan_to_num(1.0)
            strategy.mbatch[1] = strategy.mbatch[1] + 7

    spoil = Relabel(0)
    experience = task_stream(1).train_stream[0]
    refused(naive(network(), spoil, PriorEWCPlugin()), spoil, experience, "target")


def test_networks_without_buffers_have_nothing_to_remember():
    plugin = PriorEWCPlugin()
    naive(mlp(n_out=2), plugin).train(task_stream(1).train_stream[0])
    assert plugin._buffers._places == plugin._buffers._before == []
