import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.support.hypernets import adapted, hyper_model, values
from tests.support.streams import task_stream
from tests.support.targets import with_batch_norm


@pytest.mark.parametrize("training", [False, True])
def test_main_network_stands_alone(training):
    """It keeps its weights and statistics when the model is trained further."""
    model = adapted(hyper_model(with_batch_norm()), task_stream(2).train_stream)
    x = torch.randn(4, 6)
    model(x, 0)
    model.train(training)
    network, before = model.main_network(0), values(model)
    found = network(x)
    torch.testing.assert_close(values(model), before)
    torch.testing.assert_close(found, model(x, 0))
    for parameter in model.parameters():
        parameter.data.add_(1.0)
    model.train()
    model(10 * x, 0)
    network.train(training)
    if not training:
        torch.testing.assert_close(network(x), found)
    assert set(dict(network.named_parameters())) == {
        n for n, _ in with_batch_norm().named_parameters()
    }


def test_main_network_has_the_weights_that_evaluation_uses():
    """Without dropout in the hypernetwork, whose mode stays as it is."""
    model = hyper_model(hypernet={"dropout": 0.5, "hidden": (40, 40)})
    adapted(model, task_stream(1).train_stream)
    network, x = model.main_network(0), torch.randn(3, 6)
    assert all(m.training for m in model.modules())
    torch.testing.assert_close(network(x), model.eval()(x, 0))


def test_main_network_of_an_unknown_label_is_refused():
    model = adapted(hyper_model(), task_stream(1).train_stream)
    with pytest.raises(ValueError, match="task label 9 is unknown"):
        model.main_network(9)


class Checkpointed(nn.Module):
    """A target that computes a part again in the backward pass."""

    def __init__(self, reentrant):
        super().__init__()
        self.first, self.block = nn.Linear(6, 5), nn.Sequential(nn.Linear(5, 5), nn.Tanh())
        self.last, self.reentrant = nn.Linear(5, 2), reentrant

    def forward(self, x):
        return self.last(checkpoint(self.block, self.first(x), use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("generate", ["*", "*bias"])
def test_a_part_that_runs_again_without_its_weights_is_refused(generate, reentrant):
    model = hyper_model(Checkpointed(reentrant), hypernet={"generate": generate})
    adapted(model, task_stream(1).train_stream)
    outputs = model(torch.randn(3, 6), 0)
    with pytest.raises(RuntimeError, match="leave checkpoints out of the target"):
        outputs.sum().backward()
