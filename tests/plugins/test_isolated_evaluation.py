"""Training does not notice evaluations: whatever grows, whenever they come."""

import io
from contextlib import redirect_stdout

import pytest
import torch
from avalanche.training import JointTraining
from avalanche.training.plugins import SupervisedPlugin

from avalanche_hnet import IsolatedEvaluationPlugin, PriorEWCPlugin
from tests.support import avalanche_matrix as matrix
from tests.support.avalanche_strategies import STRATEGIES
from tests.support.determinism import dropping, equal
from tests.support.hypernets import hyper_model, learner
from tests.support.models import Incremental
from tests.support.strategies import naive
from tests.support.streams import task_stream


class DrawsInEvaluation(SupervisedPlugin):
    def before_eval(self, strategy, **kwargs):
        torch.rand(3)


def trained(make, stream, evaluated, **options):
    torch.manual_seed(0)
    strategy = make(IsolatedEvaluationPlugin(), DrawsInEvaluation(), **options)
    if evaluated:
        strategy.eval(stream.test_stream)
    for experience in stream.train_stream:
        strategy.train(experience, [stream.test_stream])
        if evaluated:
            strategy.eval(stream.test_stream)
    return strategy


def incremental(*plugins, **options):
    """With momentum, which a parameter that was replaced would lose."""
    model = Incremental()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return naive(model, *plugins, PriorEWCPlugin(10.0), optimizer=optimizer, **options)


def hypernetwork(*plugins, **options):
    model = hyper_model(dropping(n_out=8), multi_head=True)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    return learner(model, None, *plugins, optimizer=optimizer, **options)


def test_a_classifier_that_an_evaluation_grows_in_mid_training():
    stream = task_stream(3, task_labels=[0, 0, 0], offset=True)
    for mode in ("epoch", "iteration"):
        options = {"eval_every": 1, "peval_mode": mode}
        watched = trained(incremental, stream, True, **options)
        alone = trained(incremental, stream, False)
        assert equal(watched.model.state_dict(), alone.model.state_dict())
        assert equal(watched.optimizer.state_dict(), alone.optimizer.state_dict())


@pytest.mark.parametrize("order", [[2, 0, 1], [2, 1, 0]])
def test_tasks_that_come_in_another_order_than_they_are_evaluated(order):
    stream = task_stream(3, offset=True)
    weights = []
    for evaluated in (True, False):
        torch.manual_seed(0)
        strategy = hypernetwork(IsolatedEvaluationPlugin())
        for number in order:
            strategy.train(stream.train_stream[number])
            if evaluated:
                strategy.eval(stream.test_stream)
        weights.append(strategy.model.state_dict())
    assert weights[0]["_extra_state"]["tasks"] == order
    assert equal(*weights)


def test_results_are_those_without_the_plugin():
    """Of the first evaluation: heads and random numbers are still the same then."""
    stream, outputs = task_stream(3), []
    for plugins in ([], [IsolatedEvaluationPlugin()]):
        torch.manual_seed(0)
        strategy = incremental(*plugins)
        strategy.train(stream.train_stream[0])
        seen = Outputs()
        strategy.plugins.append(seen)
        strategy.eval(stream.test_stream)
        outputs.append(seen.outputs)
    assert equal(*outputs)


class Outputs(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.outputs = []

    def after_eval_forward(self, strategy, **kwargs):
        self.outputs.append(strategy.mb_output.clone())


def test_training_can_go_on_after_an_evaluation_that_failed():
    class Fails(SupervisedPlugin):
        def before_eval_iteration(self, strategy, **kwargs):
            raise KeyboardInterrupt

    stream = task_stream(2, offset=True)
    strategy = incremental(IsolatedEvaluationPlugin())
    strategy.train(stream.train_stream[0])
    strategy.plugins.append(Fails())
    with pytest.raises(KeyboardInterrupt):
        strategy.eval(stream.test_stream)
    strategy.plugins.pop()
    strategy.train(stream.train_stream[1])
    strategy.eval(stream.test_stream)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", STRATEGIES)
def test_any_strategy_of_avalanche(name):
    case = STRATEGIES[name]
    if case.missing:
        pytest.skip(f"needs {', '.join(case.missing)}")
    weights = []
    for evaluates in (True, False):
        torch.manual_seed(0)
        matrix.random.seed(0)
        matrix.np.random.seed(0)
        with case.environment(), redirect_stdout(io.StringIO()):
            benchmark = case.stream()
            strategy = case.build([IsolatedEvaluationPlugin()])
            joint = isinstance(strategy, JointTraining)
            for part in [benchmark.train_stream] if joint else benchmark.train_stream:
                strategy.train(part)
                if evaluates:
                    strategy.eval(benchmark.test_stream)
        weights.append(matrix.copies(strategy))
    assert matrix.equal(*weights)
