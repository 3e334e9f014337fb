"""Kronecker products of many networks on real streams: learned, evaluated, saved and resumed."""

import math
from contextlib import nullcontext

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, loss_metrics
from avalanche.models import MultiTaskModule
from avalanche.training.plugins import EvaluationPlugin

from avalanche_hnet import PriorEWCPlugin, TaskInferencePlugin, TaskStatisticsPlugin, predict
from avalanche_hnet.metrics import task_inference_metrics
from tests.support.kronecker import assert_same_state
from tests.support.networks import NETWORKS, layers_with_weights
from tests.support.strategies import naive
from tests.support.streams import adapt, tensors


def plugin_of(**options):
    return PriorEWCPlugin(2.0, prior_variance=0.5, gamma=0.9, structure="kronecker", **options)


def statistics_of(strategy):
    return [p.statistics for p in strategy.plugins if isinstance(p, TaskStatisticsPlugin)]


def at_statistics(strategy, task_label=None):
    """Those of the task in place, where each has its own."""
    own = statistics_of(strategy)
    return own[0].using(strategy.model, task_label) if own else nullcontext()


def trained(case, plugin, experiences, *others, **options):
    torch.manual_seed(0)
    model = case.make()
    metrics = [accuracy_metrics(experience=True, stream=True), loss_metrics(epoch=True)]
    evaluator = EvaluationPlugin(*metrics, forgetting_metrics(experience=True), *others, loggers=[])
    plugins = [plugin, *case.plugins()]
    strategy = naive(model, *plugins, evaluator=evaluator, lr=0.02, train_mb_size=8, **options)
    for number, experience in enumerate(experiences):
        torch.manual_seed(number)
        strategy.train(experience)
    return strategy


@pytest.mark.filterwarnings("ignore:the prior adds")
@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_learned_and_evaluated(name, weight_sharing):
    case, plugin = NETWORKS[name], plugin_of(weight_sharing=weight_sharing)
    benchmark = case.benchmark()
    strategy = trained(case, plugin, benchmark.train_stream)
    results = strategy.eval(benchmark.test_stream)
    numbers = [v for v in results.values() if isinstance(v, (int, float))]
    assert numbers
    assert all(map(math.isfinite, numbers))
    model, posterior = strategy.model, plugin.posterior
    parameters = dict(model.named_parameters())
    assert all(p.isfinite().all() for p in parameters.values())

    layers = posterior._parts.layers
    assert layers.keys() == (case.layers or layers_with_weights(model))
    for layer in layers.values():
        assert len(layer.products) == 1
        inputs, outputs = layer.products[0]
        for matrices in (inputs, outputs) if inputs.dim() == 3 else (outputs,):
            values = torch.linalg.eigvalsh(matrices.double())
            assert (values >= -1e-5 * values.max()).all()
            assert values.max() > 0
    covered = {n for layer in layers.values() for n in layer.layout.names}
    by_element = posterior._parts.elements.precision
    for n, p in parameters.items():
        assert (by_element[n] == 2).all() if n in covered else (by_element[n] > 2).any(), n
        assert (posterior.precision[n] > 2).any(), n
        assert torch.equal(posterior.mean[n], p.detach()), n
        assert posterior.known[n].all(), n


@pytest.mark.filterwarnings("ignore:the prior adds")
@pytest.mark.parametrize("method", ["linearized", "sample"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_predict(name, method):
    case, plugin = NETWORKS[name], plugin_of()
    benchmark = case.benchmark()
    strategy = trained(case, plugin, benchmark.train_stream[:2])
    experience = benchmark.test_stream[1]
    x, _, labels = tensors(experience)
    x = x[:6]
    task = {"task_label": int(labels[0])} if isinstance(strategy.model, MultiTaskModule) else {}
    before = {n: p.clone() for n, p in strategy.model.named_parameters()}
    with at_statistics(strategy, **task):
        p = predict(strategy.model, plugin.posterior, x, method, n_samples=5, **task)
        plain = predict(strategy.model, plugin.posterior, x, "map", **task)
    assert p.isfinite().all()
    torch.testing.assert_close(p.sum(1), torch.ones_like(p[:, 0]))
    assert not torch.equal(p, plain)
    if method == "linearized":
        entropies = [-(q * q.clamp_min(1e-12).log()).sum(1) for q in (p, plain)]
        assert entropies[0].mean() > entropies[1].mean()
    assert all(torch.equal(p, before[n]) for n, p in strategy.model.named_parameters())


MULTI_TASK = [n for n, case in NETWORKS.items() if case.tasks]


@pytest.mark.filterwarnings("ignore:the prior adds")
@pytest.mark.parametrize(
    "options",
    [{}, {"method": "sample", "n_samples": 3}, {"criterion": "agreement", "n_samples": 3}],
)
@pytest.mark.parametrize("name", MULTI_TASK)
def test_the_task_is_inferred_with_the_posterior(name, options):
    case, plugin = NETWORKS[name], plugin_of()
    benchmark = case.benchmark()
    metrics = task_inference_metrics(experience=True)
    strategy = trained(case, plugin, benchmark.train_stream[:2], metrics)
    if statistics := statistics_of(strategy):
        options = options | {"statistics": statistics[0]}
    inference = TaskInferencePlugin(posterior=plugin.posterior, **options)
    strategy.plugins.append(inference)
    model = strategy.model
    results = strategy.eval(benchmark.test_stream[:2])
    inferred = [v for n, v in results.items() if "Inference" in n]
    assert inferred
    assert all(0 <= v <= 1 for v in inferred)
    assert strategy.model is model
    strategy.train(benchmark.train_stream[2])  # goes on with task labels


@pytest.mark.filterwarnings("ignore:the prior adds", "ignore:there is no implicit step")
@pytest.mark.parametrize(
    ("name", "rank"),
    [*((name, 1) for name in NETWORKS), ("transformer", 2), ("IncrementalClassifier", None)],
)
def test_training_goes_on_bit_for_bit_from_saved_states(name, rank, tmp_path):
    case, plugin = NETWORKS[name], plugin_of(rank=rank)
    benchmark = case.benchmark()
    strategy = trained(case, plugin, benchmark.train_stream[:2])
    state = {
        "model": strategy.model.state_dict(),
        "posterior": plugin.posterior.state_dict(),
        "statistics": [s.state_dict() for s in statistics_of(strategy)],
    }
    torch.save(state, tmp_path / "state.pt")
    torch.manual_seed(9)
    strategy.train(benchmark.train_stream[2])

    state = torch.load(tmp_path / "state.pt", weights_only=True)
    model, fresh = case.make(), plugin_of(rank=rank)
    for experience in benchmark.train_stream[:2]:
        adapt(model, experience)
    model.load_state_dict(state["model"])
    fresh.posterior.load_state_dict(state["posterior"])
    others = case.plugins()
    for other, of in zip(others, state["statistics"], strict=True):
        other.statistics.load_state_dict(of)
    resumed = naive(model, fresh, *others, lr=0.02, train_mb_size=8)
    torch.manual_seed(9)
    resumed.train(benchmark.train_stream[2])
    for n, p in strategy.model.named_parameters():
        assert torch.equal(p, dict(model.named_parameters())[n]), n
    assert_same_state(fresh.posterior.state_dict(), plugin.posterior.state_dict())
