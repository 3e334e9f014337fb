"""A hypernetwork and its strategy in one call."""

import functools
import inspect

import pytest
import torch
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from avalanche_hnet import (
    ChunkedHyperNetwork,
    ClipGradientPlugin,
    FixedTarget,
    Gaussian,
    HyperModel,
    Hypernet,
    HypernetTemplate,
    HyperNetwork,
    InMemoryPlugin,
)
from tests.support.models import mlp
from tests.support.streams import task_stream

LOOP = {"train_mb_size": 5, "train_epochs": 2, "eval_mb_size": 20}


def hypernet(target=None, **options):
    target = mlp(n_out=2) if target is None else target
    return Hypernet(model=target, **({"evaluator": EvaluationPlugin()} | LOOP | options))


def trained(make):
    torch.manual_seed(0)
    strategy = make(mlp(n_out=2))
    for experience in task_stream(3).train_stream:
        strategy.train(experience)
    return {n: p.detach() for n, p in strategy.model.named_parameters()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[n], second[n]) for n in first)


sgd = functools.partial(torch.optim.SGD, lr=0.05)


@pytest.mark.parametrize(
    ("sizes", "build"),
    [
        (
            {"embedding_dim": 4, "hidden": (5,)},
            functools.partial(HyperNetwork, embedding_dim=4, hidden=(5,), init="hyperfan"),
        ),
        (
            {"embedding_dim": 4, "hidden": [5, 3], "chunk_size": 13, "init": "default"},
            functools.partial(
                ChunkedHyperNetwork,
                embedding_dim=4,
                hidden=(5, 3),
                chunk_size=13,
                chunk_embedding_dim=4,
            ),
        ),
        (
            {"embedding_dim": 4, "hidden": (), "chunk_size": 13, "chunk_embedding_dim": 2},
            functools.partial(
                ChunkedHyperNetwork,
                embedding_dim=4,
                hidden=(),
                chunk_size=13,
                chunk_embedding_dim=2,
                init="hyperfan",
            ),
        ),
    ],
)
def test_it_is_the_template_with_its_parts(sizes, build):
    options = {"prior_variance": 3.0, "clip_grad_norm": 0.5, "log_every": 2}

    def by_parts(target):
        model = HyperModel(target, build(target))
        return HypernetTemplate(
            model=model,
            optimizer=sgd(model.parameters()),
            regularizer=FixedTarget(0.7),
            evaluator=EvaluationPlugin(),
            **options,
            **LOOP,
        )

    found = trained(lambda target: hypernet(target, optimizer=sgd, beta=0.7, **sizes, **options))
    assert_same(found, trained(by_parts))


def test_defaults():
    strategy = hypernet()
    assert isinstance(strategy.model, HyperModel)
    assert type(strategy.model.hypernetwork) is HyperNetwork
    assert not strategy.model.hypernetwork.output.bias.any()  # of hyperfan
    assert isinstance(strategy.regularizer, FixedTarget)
    assert strategy.regularizer.beta == FixedTarget().beta
    assert isinstance(strategy.optimizer, torch.optim.Adam)
    assert strategy.optimizer.param_groups[0]["lr"] == 1e-3
    assert isinstance(strategy._criterion, nn.CrossEntropyLoss)
    assert any(isinstance(p, InMemoryPlugin) for p in strategy.plugins)


def test_defaults_are_those_of_the_template_and_of_avalanche():
    def defaults(of):
        parameters = [*inspect.signature(of.__init__).parameters.values()][1:]
        return {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}

    ours, of_template, of_loop = defaults(Hypernet), defaults(HypernetTemplate), defaults(Naive)
    assert not {"kwargs", "options"} & ours.keys()
    common = (ours.keys() & of_template.keys()) - {"optimizer"}
    assert all(ours[n] == of_template[n] for n in common)
    assert of_loop.keys() <= ours.keys()
    same = of_loop.keys() - {"optimizer", "criterion", "eval_mb_size", "peval_mode"}
    assert all(ours[n] == of_loop[n] for n in same)


@pytest.mark.in_memory
def test_options_reach_the_template():
    plugins = [ClipGradientPlugin(value=1.0)]
    strategy = hypernet(
        likelihood=Gaussian(0.5), log_every=7, in_memory=False, plugins=plugins, device="cpu"
    )
    assert strategy.likelihood.noise_std == 0.5
    assert strategy.log_every == 7
    assert not any(isinstance(p, InMemoryPlugin) for p in strategy.plugins)
    assert plugins[0] in strategy.plugins
    assert len(plugins) == 1


def test_beta_keeps_earlier_tasks_and_the_network_is_left_alone():
    benchmark, changes = task_stream(3), []
    x = torch.stack([sample[0] for sample in benchmark.train_stream[0].dataset])
    for beta in (0.0, 1.0):
        torch.manual_seed(0)
        target = mlp(n_out=2)
        before = [p.detach().clone() for p in target.parameters()]
        strategy = hypernet(target, beta=beta, train_epochs=10)
        outputs = []
        for experience in benchmark.train_stream:
            strategy.train(experience)
            with torch.no_grad():
                outputs.append(strategy.model.eval()(x, 0))
        changes.append((outputs[-1] - outputs[0]).abs().max().item())
        assert all(torch.equal(a, b) for a, b in zip(before, target.parameters(), strict=True))
    assert changes[1] < 0.3 * changes[0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"beta": -1.0}, ValueError, "beta must be at least 0 and finite, got -1"),
        ({"embedding_dim": 0}, ValueError, "embedding_dim"),
        ({"chunk_size": 10**6}, ValueError, "chunk_size must be at most the number of generated"),
        ({"chunk_embedding_dim": 3}, ValueError, "chunk_embedding_dim=3 needs a chunk_size"),
        ({"init": "xavier"}, ValueError, "init must be one of .*got 'xavier'"),
        (
            {"optimizer": sgd(mlp().parameters())},
            TypeError,
            "optimizer must be a function that m.*got one that is made already, SGD$",
        ),
        ({"optimizer": "adam"}, TypeError, "optimizer must be a function.*got 'adam'"),
        ({"optimizer": list}, TypeError, "optimizer must make an optimizer, but made"),
        ({"clip_grad_norm": 0.0}, ValueError, "clip_grad_norm must be positive"),
        ({"in_memory": 1}, TypeError, "in_memory must be True or False, got 1"),
        ({"train_mb_size": 0}, ValueError, "train_mb_size must be at least 1, got 0"),
        ({"peval_mode": "step"}, ValueError, "peval_mode must be one of .*got 'step'"),
    ],
)
def test_bad_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        hypernet(**options)


def test_other_models_are_refused():
    target = mlp(n_out=2)
    model = HyperModel(target, HyperNetwork(target, embedding_dim=2))
    with pytest.raises(TypeError, match="model is a HyperModel already; pass the main network"):
        hypernet(model)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, .*got 'mlp'"):
        hypernet("mlp")
