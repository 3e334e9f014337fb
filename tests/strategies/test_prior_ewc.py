"""The strategy beside the plugin."""

import inspect

import pytest
import torch
from avalanche import training
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset, ConstantSequence, TaskLabels
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from torch import nn

from avalanche_hnet import (
    Categorical,
    GaussianPosterior,
    KroneckerPosterior,
    PriorEWC,
    PriorEWCPlugin,
)
from tests.support.models import MultiHead, mlp
from tests.support.streams import task_stream

OPTIONS = {"train_mb_size": 5, "train_epochs": 2, "eval_mb_size": 20}

OF_PLUGIN = {
    "ewc_lambda": 10.0,
    "prior_variance": 2.0,
    "gamma": 0.9,
    "fisher": "sampled",
    "n_fisher": 7,
    "likelihood": Categorical(),
    "prior_mean": "initial",
    "train_from_scratch": False,
    "log_every": 3,
    "generator": 1,
    "penalty_step": "gradient",
    "structure": "kronecker",
    "rank": 2,
    "weight_sharing": "reduce",
    "max_rank": 8,
}
DIAGONAL = {
    "penalty_step": "implicit",
    "structure": "diagonal",
    "rank": 1,
    "weight_sharing": "expand",
    "max_rank": None,
}
OF_POSTERIOR = {"prior_variance", "prior_mean", "structure", "rank", "weight_sharing", "max_rank"}


def prior_ewc(model, **options):
    options = {"evaluator": EvaluationPlugin()} | OPTIONS | options
    optimizer = options.pop("optimizer", None) or torch.optim.SGD(model.parameters(), 0.1)
    return PriorEWC(model=model, optimizer=optimizer, **options)


def of_plugin(**changes):
    given = OF_PLUGIN | changes
    return given | {"generator": torch.Generator().manual_seed(given["generator"])}


def trained(make, stream):
    torch.manual_seed(0)
    model = MultiHead()
    strategy = make(model)
    for experience in stream:
        strategy.train(experience)
    return strategy, {n: p.detach() for n, p in model.named_parameters()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("changes", [{}, {"train_from_scratch": True, "fisher": "exact"}, DIAGONAL])
def test_it_is_naive_with_the_plugin(changes):
    stream = task_stream(3).train_stream
    plugin = PriorEWCPlugin(**of_plugin(**changes))

    def by_plugin(model):
        return Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), 0.1),
            criterion=nn.CrossEntropyLoss(),
            plugins=[ReplayPlugin(5), plugin],
            evaluator=EvaluationPlugin(),
            **OPTIONS,
        )

    plugins = [ReplayPlugin(5)]
    strategy, found = trained(
        lambda model: prior_ewc(model, plugins=plugins, **of_plugin(**changes)), stream
    )
    _, expected = trained(by_plugin, stream)
    assert all(torch.equal(found[n], expected[n]) for n in expected)
    posterior, other = strategy.posterior.precision, plugin.posterior.precision
    assert all(torch.equal(posterior[n], other[n]) for n in other)
    assert len(plugins) == 1  # a list of the user's own


def test_arguments_and_defaults_are_those_of_the_plugin_and_of_avalanche():
    def defaults(of):
        parameters = [*inspect.signature(of.__init__).parameters.values()][1:]
        return {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}

    ours, plugin = defaults(PriorEWC), defaults(PriorEWCPlugin)
    assert plugin.keys() == OF_PLUGIN.keys()
    assert plugin.items() <= ours.items()
    of_loop = {n: ours[n] for n in ours.keys() - plugin.keys() - {"model", "optimizer"}}
    avalanche = defaults(Naive)
    assert of_loop.keys() == avalanche.keys() - {"model", "optimizer"} | {"peval_mode"}
    same = of_loop.keys() - {"criterion", "peval_mode", "eval_mb_size"}
    assert all(of_loop[n] == avalanche[n] for n in same)


def test_arguments_reach_the_plugin():
    given = of_plugin()
    strategy = prior_ewc(mlp(), **given)
    (plugin,) = [p for p in strategy.plugins if isinstance(p, PriorEWCPlugin)]
    kept = {n: getattr(plugin, n) for n in given.keys() - OF_POSTERIOR}
    assert kept.items() <= given.items()
    assert strategy.posterior is plugin.posterior
    posterior = strategy.posterior
    assert isinstance(posterior, KroneckerPosterior)
    assert (posterior.rank, posterior.weight_sharing, posterior.max_rank) == (2, "reduce", 8)
    assert posterior.prior_variance == given["prior_variance"]
    assert posterior.state_dict()["prior_mean_kind"] == given["prior_mean"]
    diagonal = prior_ewc(mlp(), **of_plugin(**DIAGONAL)).posterior
    assert isinstance(diagonal, GaussianPosterior)


def test_defaults_learn_and_evaluate():
    benchmark = task_stream(2)
    model = MultiHead()
    strategy = PriorEWC(model=model, optimizer=torch.optim.SGD(model.parameters(), 0.01))
    assert isinstance(strategy._criterion, nn.CrossEntropyLoss)
    for experience in benchmark.train_stream:
        strategy.train(experience)
    assert strategy.eval(benchmark.test_stream)
    assert all(known.all() for known in strategy.posterior.known.values())


def test_a_call_of_avalanches_ewc_needs_another_name_only():
    """Of what both have."""
    model = mlp(n_out=2)
    options = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
        "criterion": nn.CrossEntropyLoss(),
        "ewc_lambda": 1.0,
        "evaluator": EvaluationPlugin(),
    }
    experience = task_stream(1, task_labels=[0]).train_stream[0]
    for strategy in (training.EWC, PriorEWC):
        strategy(**options, **OPTIONS).train(experience)


class OfDictionaries(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 2)

    def forward(self, x):
        return self.layer(x["features"])


@pytest.mark.in_memory
def test_inputs_may_be_dictionaries():
    x, y = torch.randn(10, 6), torch.arange(10) % 2
    samples = [({"features": a}, int(b)) for a, b in zip(x, y, strict=True)]
    labels = TaskLabels(ConstantSequence(0, 10))
    benchmark = benchmark_from_datasets(
        train=[AvalancheDataset([samples], data_attributes=[labels])]
    )
    model = OfDictionaries()
    before = model.layer.weight.detach().clone()
    strategy = prior_ewc(model)
    strategy.train(benchmark.train_stream[0])
    assert not torch.equal(model.layer.weight, before)
    assert (strategy.posterior.precision["layer.weight"] > 1).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ewc_lambda": -1.0}, ValueError, "ewc_lambda must be at least 0 and finite, got -1"),
        ({"penalty_step": "explicit"}, ValueError, "penalty_step must be one of .*got 'explicit'"),
        ({"optimizer": torch.optim.SGD}, TypeError, "optimizer must be an Optimizer.*, got <class"),
        ({"criterion": "mse"}, TypeError, "criterion must be called with outputs.*got 'mse'"),
        ({"criterion": nn.MSELoss}, TypeError, r"such as nn.CrossEntropyLoss\(\), got <class"),
        ({"train_mb_size": 0}, ValueError, "train_mb_size must be at least 1, got 0"),
        ({"train_epochs": -1}, ValueError, "train_epochs must be at least 0, got -1"),
        ({"eval_mb_size": 0}, ValueError, "eval_mb_size must be at least 1, got 0"),
        ({"eval_every": 0.5}, TypeError, "eval_every must be an integer: -1 for never.*got 0.5"),
        ({"peval_mode": "step"}, ValueError, "peval_mode must be one of .*got 'step'"),
        ({"plugins": PriorEWCPlugin()}, TypeError, "plugins must be a list of plugins or None"),
        ({"plugins": [PriorEWCPlugin()]}, ValueError, "plugins has a PriorEWCPlugin, but PriorEWC"),
    ],
)
def test_bad_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        prior_ewc(mlp(), **options)


def test_other_models_are_refused():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got 'mlp'"):
        PriorEWC(model="mlp", optimizer=torch.optim.SGD(mlp().parameters(), 0.1))
