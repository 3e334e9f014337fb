"""Prior-focused EWC with other strategies and plugins."""

import warnings

import pytest
import torch
from avalanche.training import LwF, Naive, Replay
from avalanche.training.plugins import (
    EarlyStoppingPlugin,
    EvaluationPlugin,
    LRSchedulerPlugin,
    LwFPlugin,
    ReplayPlugin,
    SupervisedPlugin,
)
from torch import nn

from avalanche_hnet import PriorEWCPlugin
from tests.support.models import Incremental, MultiHead
from tests.support.strategies import Recorder, naive
from tests.support.streams import task_stream


@pytest.mark.parametrize(
    ("strategy", "options", "plugins"),
    [
        (Replay, {"mem_size": 10}, []),
        (LwF, {"alpha": 1.0, "temperature": 2.0}, []),
        (Naive, {}, [lambda: ReplayPlugin(10), lambda: LwFPlugin(1.0, 2.0)]),
        (Naive, {"eval_every": 1}, []),
        (Naive, {"eval_every": 1, "peval_mode": "iteration"}, []),
    ],
)
@pytest.mark.parametrize("multi_head", [False, True])
def test_works_with_other_strategies_and_plugins(strategy, options, plugins, multi_head):
    labels = None if multi_head else [0, 0, 0]
    benchmark = task_stream(3, task_labels=labels, offset=not multi_head)
    model = MultiHead() if multi_head else Incremental()
    plugin = PriorEWCPlugin(10.0)
    learner = naive(model, plugin, *(make() for make in plugins), strategy=strategy, **options)
    for experience in benchmark.train_stream:
        learner.train(experience, eval_streams=[benchmark.test_stream])
    for name, p in model.named_parameters():
        assert plugin.posterior.mean[name].shape == p.shape
        assert plugin.posterior.known[name].any()
        assert torch.equal(
            plugin.posterior.mean[name][plugin.posterior.known[name]],
            p.detach()[plugin.posterior.known[name]],
        )


def test_replayed_samples_move_other_heads_against_the_penalty():
    stream = task_stream(2).train_stream
    name = "output.head.classifiers.0.classifier.weight"
    moves = []
    for lam in (0.0, 300.0):
        torch.manual_seed(0)
        model, plugin = MultiHead(), PriorEWCPlugin(lam)
        strategy = naive(model, plugin, ReplayPlugin(20), lr=0.01, train_epochs=20)
        strategy.train(stream[0])
        before = dict(model.named_parameters())[name].detach().clone()
        strategy.train(stream[1])
        moves.append((dict(model.named_parameters())[name] - before).abs().max().item())
    assert moves[0] > 0
    assert 0 < moves[1] < 0.5 * moves[0]


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}])
def test_replayed_heads_are_penalised_with_every_implementation_of_an_optimizer(options):
    stream, penalties = task_stream(2).train_stream, []

    class Penalty(SupervisedPlugin):
        def after_backward(self, strategy, **kwargs):
            name = "output.head.classifiers.0.classifier.weight"
            p = dict(strategy.model.named_parameters())[name]
            moved = not torch.equal(p, plugin.posterior.mean[name])
            penalties.append((moved, name in plugin._experience.penalty.dormant))

    torch.manual_seed(0)
    model, plugin = MultiHead(), PriorEWCPlugin(100.0)
    optimizer = torch.optim.Adam(model.parameters(), 0.01, **options)
    strategy = naive(model, plugin, ReplayPlugin(20), optimizer=optimizer)
    strategy.train(stream[0])
    strategy.plugins.append(Penalty())
    strategy.train(stream[1])
    assert any(moved for moved, _ in penalties)
    assert not any(moved and dormant for moved, dormant in penalties)


def test_early_stopping_and_schedulers():
    from avalanche.evaluation.metrics import accuracy_metrics

    benchmark = task_stream(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = EvaluationPlugin(accuracy_metrics(stream=True))
        model, plugin = MultiHead(), PriorEWCPlugin()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        strategy = naive(
            model,
            plugin,
            EarlyStoppingPlugin(1, "test_stream"),
            LRSchedulerPlugin(torch.optim.lr_scheduler.StepLR(optimizer, 1)),
            optimizer=optimizer,
            evaluator=evaluator,
            eval_every=1,
            train_epochs=10,
        )
        for experience in benchmark.train_stream:
            strategy.train(experience, eval_streams=[benchmark.test_stream])
    for name, p in model.named_parameters():
        assert torch.equal(plugin.posterior.mean[name], p.detach())


class AddsALayer(SupervisedPlugin):
    """Gives the model another layer at the start of an experience."""

    def before_training_exp(self, strategy, **kwargs):
        if not hasattr(strategy.model, "more"):
            strategy.model.more = nn.Linear(2, 2)
            strategy.optimizer.add_param_group({"params": strategy.model.more.parameters()})


class Deeper(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 2)

    def forward(self, x):
        return self.more(self.first(x)) if hasattr(self, "more") else self.first(x)


def test_layers_that_later_plugins_add_feel_the_prior():
    found = []
    for plugins in ([PriorEWCPlugin(), AddsALayer()], [AddsALayer(), PriorEWCPlugin()]):
        torch.manual_seed(0)
        model, recorder = Deeper(), Recorder()
        strategy = naive(model, *plugins, recorder)
        strategy.train(task_stream(1).train_stream[0])
        found.append(recorder.losses)
    assert found[0] == found[1]
