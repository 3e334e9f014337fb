"""Any target is trained through a hypernetwork."""

import pytest
import torch
from torch import nn

from avalanche_hnet import EWC, FixedTarget, Gaussian, Jacobian, PriorEWCPlugin
from tests.support.hypernet_strategies import model_weights, trained
from tests.support.hypernets import hyper_model, learner
from tests.support.models import mlp
from tests.support.streams import task_stream
from tests.support.targets import TARGETS, stream_for


@pytest.mark.parametrize(
    "regularizer",
    [
        lambda: FixedTarget(fisher_weights=True),
        lambda: Jacobian(),
        lambda: EWC(),
        lambda: FixedTarget(differentiable_lookahead=True),
    ],
)
@pytest.mark.parametrize("name", ["lenet", "own parameter", "tied weights", "lstm", "batch norm"])
@pytest.mark.filterwarnings("ignore:squared gradients")
def test_any_target_with_any_regulariser(regularizer, name):
    make, shape = TARGETS[name]
    model = hyper_model(make(), hypernet={"chunk_size": 40})
    strategy = learner(model, regularizer(), lr=0.001, train_mb_size=3)
    for experience in stream_for(shape).train_stream:
        strategy.train(experience)
    assert all(p.isfinite().all() for p in model.parameters())


def test_part_of_the_weights_generated():
    """What tasks share without being generated is trained, too."""

    def model():
        return hyper_model(hypernet={"generate": "2.*"})

    found, weights = trained(task_stream(2).train_stream, FixedTarget(), model=model)
    start = model_weights(model)
    for name in ("target.0.weight", "target.0.bias"):
        assert not torch.equal(start[name], weights[0][name])
        assert not torch.equal(weights[0][name], weights[1][name])
    assert found.hypernetwork.layout.n_weights == 18


def regression_tasks():
    from avalanche_hnet.benchmarks import Regression1D

    return Regression1D(n_train=20, n_test=10)


@pytest.mark.parametrize(
    ("regularizer", "noise"),
    [
        (lambda: FixedTarget(), None),
        (lambda: FixedTarget(fisher_weights=True, n_fisher=5), 1.0),
        (lambda: EWC(), 1.0),
        (lambda: EWC(), 0.05),
    ],
)
def test_regression(regularizer, noise):
    benchmark = regression_tasks()
    model = hyper_model(mlp(n_in=1, n_out=1))
    strategy = learner(
        model,
        regularizer(),
        criterion=nn.MSELoss(),
        likelihood=None if noise is None else Gaussian(noise),
        lr=0.001,
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
        assert all(p.isfinite().all() for p in model.parameters())
    assert model.trained_task_labels == (0, 1, 2)


@pytest.mark.usefixtures("float64")
def test_ewc_is_on_the_scale_of_the_criterion():
    """The same as PriorEWCPlugin on the hypernetwork's weights."""
    benchmark, weights = regression_tasks(), []
    plugin = PriorEWCPlugin(1.0, penalty_step="gradient")
    for regularizer, plugins in ((EWC(1.0), []), (None, [plugin])):
        torch.manual_seed(0)
        model = hyper_model(mlp(n_in=1, n_out=1))
        strategy = learner(model, regularizer, *plugins, criterion=nn.MSELoss(), lr=0.001)
        for experience in benchmark.train_stream[:1]:
            # PriorEWCPlugin also has a prior of the embedding, which does not reach θ yet.
            strategy.train_epochs, strategy.train_mb_size = 1, 20
            strategy.train(experience, shuffle=False)
        theta = model.hypernetwork.shared_parameters()
        weights.append({n: p.detach() for n, p in theta.items()})
    torch.testing.assert_close(*weights, rtol=1e-9, atol=1e-12)
