"""Hypernetworks with Avalanche's plugins."""

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import (
    EarlyStoppingPlugin,
    EvaluationPlugin,
    EWCPlugin,
    LwFPlugin,
    ReplayPlugin,
    SupervisedPlugin,
)

from avalanche_hnet import EWC, FixedTarget, PriorEWCPlugin
from tests.support.hypernet_strategies import PREFIX, adam, assert_same_weights, trained
from tests.support.hypernets import hyper_model, learner, values
from tests.support.models import mlp
from tests.support.streams import task_stream


def test_gradients_that_others_leave_behind_do_not_count():
    """Such as Avalanche's EWC, which computes its importances after an experience."""
    stream = task_stream(task_labels=[0, 0, 1]).train_stream
    _, expected = trained(stream, FixedTarget())
    _, found = trained(stream, FixedTarget(), EWCPlugin(0.0))
    assert_same_weights(found[-1], expected[-1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "plugin",
    [
        lambda: ReplayPlugin(10),
        lambda: LwFPlugin(1.0, 2.0),
        lambda: EWCPlugin(1.0),
        lambda: PriorEWCPlugin(1.0),
        lambda: EarlyStoppingPlugin(1, "test_stream"),
    ],
)
@pytest.mark.parametrize(
    "regularizer",
    [
        lambda: FixedTarget(differentiable_lookahead=True),
        lambda: FixedTarget(train_previous_embeddings=True),
        lambda: FixedTarget(fisher_weights=True),
        lambda: EWC(),
    ],
)
def test_avalanches_plugins(plugin, regularizer):
    benchmark = task_stream(3)
    model = hyper_model(mlp(n_out=6), multi_head=True)
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True))
    strategy = learner(
        model,
        regularizer(),
        plugin(),
        optimizer=adam(model.parameters()),
        evaluator=evaluator,
        eval_every=1,
    )
    for experience in benchmark.train_stream:
        strategy.train(experience, eval_streams=[benchmark.test_stream])
    assert all(p.isfinite().all() for p in model.parameters())
    assert "Top1_Acc_Stream/eval_phase/test_stream/Task002" in strategy.eval(benchmark.test_stream)


def test_replayed_samples_train_the_shared_weights():
    stream, weights = task_stream(2).train_stream, []
    for plugins in ([], [ReplayPlugin(20)]):
        weights.append(trained(stream, FixedTarget(), *plugins)[1])
    assert_same_weights(weights[0][0], weights[1][0])
    name = PREFIX + "output.bias"
    assert not torch.equal(weights[0][1][name], weights[1][1][name])


class Worsen(SupervisedPlugin):
    """Negates all weights after every epoch but the first; keeps those before and after that."""

    def before_training_exp(self, strategy, **kwargs):
        self.best = [values(strategy.model)]

    def after_training_epoch(self, strategy, **kwargs):
        if strategy.clock.train_exp_epochs == 0:
            self.best.append(values(strategy.model))
        else:
            for p in strategy.model.parameters():
                p.data.neg_()


@pytest.mark.filterwarnings("ignore")
def test_early_stopping_goes_back_to_the_best_weights():
    benchmark, worsen = task_stream(2), Worsen()
    model = hyper_model(mlp(n_out=4), multi_head=True)
    strategy = learner(
        model,
        FixedTarget(),
        EarlyStoppingPlugin(1, "test_stream"),
        worsen,
        optimizer=adam(model.parameters(), 0.05),
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True)),
        eval_every=1,
        train_epochs=6,
    )
    for experience in benchmark.train_stream:
        strategy.train(experience, eval_streams=[benchmark.test_stream])
        assert strategy.clock.train_exp_epochs < 6
        found = values(model)
        assert any(all(torch.equal(found[n], w[n]) for n in found) for w in worsen.best)
        with torch.no_grad():  # and the cache keeps nothing of the others
            x = torch.randn(3, 6)
            expected = model.main_network(0).eval()(x)
            torch.testing.assert_close(model.eval()(x, 0), expected)


def test_loss_of_other_plugins_belongs_to_the_task():
    class Distance(SupervisedPlugin):
        """As if a plugin held one weight with great strength."""

        def before_backward(self, strategy, **kwargs):
            bias = strategy.model.hypernetwork.output.bias
            strategy.loss += 1000 * (bias[0] - 3.0) ** 2

    model, _ = trained(task_stream(1).train_stream, None, Distance(), lr=0.0005)
    assert abs(model.hypernetwork.output.bias[0].item() - 3.0) < 1e-3
