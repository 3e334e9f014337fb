"""Avalanche's strategies on Regression1D."""

import pytest
import torch
from avalanche.models import MultiTaskModule
from avalanche.training import Cumulative, JointTraining, Naive
from avalanche.training.plugins import ReplayPlugin
from torch import nn

from avalanche_hnet import Gaussian, PriorEWCPlugin
from avalanche_hnet.benchmarks import Regression1D
from tests.support.regression import network, trainer


class NetworkPerTask(MultiTaskModule):
    def __init__(self, n_tasks=3):
        super().__init__()
        self.networks = nn.ModuleList(network() for _ in range(n_tasks))

    def forward_single_task(self, x, task_label):
        return self.networks[task_label](x)


def test_naive_learns_each_task_and_forgets():
    benchmark, strategy = Regression1D(), trainer(network())
    for index, experience in enumerate(benchmark.train_stream):
        strategy.train(experience)
        results = strategy.eval(benchmark.test_stream)
        assert results[f"MSE_Exp/eval_phase/test_stream/Task00{index}/Exp00{index}"] < 0.05
    assert results["MSE_Exp/eval_phase/test_stream/Task000/Exp000"] > 0.1


@pytest.mark.parametrize(
    ("strategy", "plugins"),
    [(Naive, [ReplayPlugin(mem_size=150)]), (Cumulative, []), (JointTraining, [])],
)
def test_strategies_with_old_data_learn_all(strategy, plugins):
    benchmark = Regression1D()
    trained = trainer(network(), *plugins, strategy=strategy, epochs=100)
    if strategy is JointTraining:
        trained.train(benchmark.train_stream)
    else:
        for experience in benchmark.train_stream:
            trained.train(experience)
    assert trained.eval(benchmark.test_stream)["MSE_Stream/eval_phase/test_stream/Task002"] < 0.05


def test_prior_ewc_forgets_less_than_naive():
    benchmark, errors = Regression1D(), []
    for plugins in ([], [PriorEWCPlugin(100.0, prior_variance=100.0, likelihood=Gaussian(0.05))]):
        torch.manual_seed(0)
        strategy = trainer(network(), *plugins)
        for experience in benchmark.train_stream[:2]:
            strategy.train(experience)
        results = strategy.eval(benchmark.test_stream)
        errors.append(results["MSE_Exp/eval_phase/test_stream/Task000/Exp000"])
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("strategy", [Naive, JointTraining])
def test_task_labels_reach_multi_task_modules(strategy):
    benchmark, model = Regression1D(), NetworkPerTask()
    trained = trainer(model, strategy=strategy, epochs=100)
    if strategy is JointTraining:  # batches of several tasks
        trained.train(benchmark.train_stream)
    else:
        for experience in benchmark.train_stream:
            trained.train(experience)
    results = trained.eval(benchmark.test_stream)
    assert results["MSE_Stream/eval_phase/test_stream/Task002"] < 0.05


def test_without_task_labels_all_is_task_0():
    model = NetworkPerTask()
    before = [[p.clone() for p in network.parameters()] for network in model.networks]
    trainer(model, epochs=1).train(Regression1D(return_task_id=False).train_stream[1])
    unchanged = [
        all(map(torch.equal, network.parameters(), weights))
        for network, weights in zip(model.networks, before, strict=True)
    ]
    assert unchanged == [False, True, True]
