"""A HyperModel in Avalanche's strategies."""

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import Cumulative, JointTraining, Naive, Replay
from avalanche.training.plugins import (
    EarlyStoppingPlugin,
    EvaluationPlugin,
    EWCPlugin,
    LRSchedulerPlugin,
    LwFPlugin,
    ReplayPlugin,
)
from torch import nn

from avalanche_hnet import PriorEWCPlugin, active_elements
from tests.support.hypernets import hyper_model, run_target
from tests.support.models import mlp
from tests.support.oracles import loop_fisher
from tests.support.strategies import naive
from tests.support.streams import task_stream, tensors
from tests.support.targets import partial


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("remaining", ["shared", "per_task"])
def test_prior_ewc_takes_what_belongs_to_other_tasks_for_inactive(remaining):
    benchmark = task_stream(3)
    model, plugin = partial(remaining), PriorEWCPlugin(10.0)
    strategy = naive(model, plugin, optimizer=torch.optim.AdamW(model.parameters(), 0.01))
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream)  # adds tasks 1 and 2
    if remaining == "shared":
        x, y, labels = tensors(benchmark.train_stream[0])
        expected = loop_fisher(model, x, y, nn.functional.cross_entropy, labels)
        for name, known in plugin.posterior.known.items():
            assert known.all(), name
            torch.testing.assert_close(plugin.posterior.precision[name], 1 + 20 * expected[name])
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    strategy.train(benchmark.train_stream[1])

    def belongs_to(label):
        return set(model.task_parameters(label))

    assert len(belongs_to(0)) == (1 if remaining == "shared" else 5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            others = name in belongs_to(0) | belongs_to(2)
            assert torch.equal(parameter, before[name]) == others, name
            assert plugin.posterior.known[name].any() == (name not in belongs_to(2)), name
    active = active_elements(model, benchmark.train_stream[1])
    assert {n for n, mask in active.items() if not mask.any()} == belongs_to(0) | belongs_to(2)


def early_stopping(optimizer):
    return EarlyStoppingPlugin(1, "test_stream")


def scheduler(optimizer):
    return LRSchedulerPlugin(torch.optim.lr_scheduler.StepLR(optimizer, 1))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("multi_head", [False, True])
@pytest.mark.parametrize(
    ("strategy", "options", "plugin"),
    [
        (Naive, {}, None),
        (Cumulative, {}, None),
        (JointTraining, {}, None),
        (Replay, {"mem_size": 10}, None),
        (Naive, {}, lambda _: ReplayPlugin(10)),
        (Naive, {}, lambda _: LwFPlugin(1.0, 2.0)),
        (Naive, {}, lambda _: EWCPlugin(1.0)),
        (Naive, {}, lambda _: EWCPlugin(1.0, mode="online", decay_factor=0.5)),
        (Naive, {"eval_every": 1, "train_epochs": 4}, early_stopping),
        (Naive, {}, scheduler),
        (Naive, {"eval_every": 1, "peval_mode": "iteration"}, None),
    ],
)
def test_works_in_avalanches_strategies(strategy, options, plugin, multi_head):
    benchmark, target = task_stream(3), mlp(n_out=6 if multi_head else 2)
    model = hyper_model(target, multi_head=multi_head)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    plugins = [] if plugin is None else [plugin(optimizer)]
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True, experience=True))
    cl = naive(
        model, *plugins, strategy=strategy, optimizer=optimizer, evaluator=evaluator, **options
    )
    at_once = strategy is JointTraining
    for part in [benchmark.train_stream] if at_once else benchmark.train_stream:
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        cl.train(part, eval_streams=[benchmark.test_stream])
        results = cl.eval(benchmark.test_stream)
        assert {f"Top1_Acc_Exp/eval_phase/test_stream/Task{t:03}/Exp{t:03}" for t in range(3)} <= (
            results.keys()
        )
        if plugin is not early_stopping:  # which may go back to the start
            moved = {n for n, p in before.items() if not torch.equal(model.get_parameter(n), p)}
            assert "hypernetwork.output.weight" in moved
    assert model.trained_task_labels == (0, 1, 2)
    x, label = torch.randn(4, 6), 1
    expected = run_target(target, model.eval(), label, x)
    torch.testing.assert_close(model(x, label), expected[:, 2:4] if multi_head else expected)


@pytest.mark.parametrize("strategy", [Naive, Cumulative, JointTraining])
def test_learns(strategy):
    benchmark = task_stream(2, n_samples=40)
    model = hyper_model(mlp(n_out=2))
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    cl = naive(model, strategy=strategy, optimizer=optimizer, evaluator=evaluator, train_epochs=15)
    at_once = strategy is JointTraining
    for part in [benchmark.train_stream] if at_once else benchmark.train_stream:
        cl.train(part)
    last = benchmark.test_stream if strategy is not Naive else benchmark.test_stream[1:]
    results = cl.eval(last)
    assert results["Top1_Acc_Stream/eval_phase/test_stream/Task001"] > 0.9
