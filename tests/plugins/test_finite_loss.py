import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin

from avalanche_hnet import PriorEWCPlugin
from tests.support.models import mlp
from tests.support.strategies import Recorder, naive
from tests.support.streams import task_stream


def test_infinite_loss_is_refused_before_the_weights_change():
    experience = task_stream(1).train_stream[0]
    model, recorder = mlp(n_out=2), Recorder()

    class Explode(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            if strategy.clock.train_exp_iterations == 3:
                strategy.mbatch[0] = strategy.mbatch[0] * float("inf")

    strategy = naive(model, Explode(), PriorEWCPlugin(), recorder)
    message = "not finite at iteration 3 of experience 0: nan.*inputs of this batch are not finite"
    with pytest.raises(ValueError, match=message):
        strategy.train(experience)
    assert len(recorder.weights) == 3
    for name, p in model.named_parameters():
        assert torch.equal(p, recorder.weights[-1][name])
