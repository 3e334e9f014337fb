"""HypernetTemplate in two processes, against one."""

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from avalanche_hnet import (
    EWC,
    ClipGradientPlugin,
    FixedTarget,
    Hypernet,
    Jacobian,
    TaskInferencePlugin,
    ValuePreserving,
)
from tests.support.hypernet_strategies import adam
from tests.support.hypernets import hyper_model, learner
from tests.support.models import mlp
from tests.support.processes import EvaluateAll, assert_close, in_two_processes, same
from tests.support.streams import task_stream, two_tasks_in_one

CHUNKS = {"hypernet": {"chunk_size": 13}}


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.05, momentum=0.9)


def normalised():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))


# Regulariser, options of the model, options of the strategy.
TRAININGS = {
    "none": (lambda: None, {}, {"prior_variance": 2.0}),
    "target": (lambda: FixedTarget(0.1), {}, {"clip_grad_norm": 0.5}),
    "target, chunks, SGD": (lambda: FixedTarget(0.1), CHUNKS, {"optimizer": sgd}),
    "target, differentiable": (lambda: FixedTarget(0.1, differentiable_lookahead=True), {}, {}),
    "target, differentiable, SGD": (
        lambda: FixedTarget(0.1, differentiable_lookahead=True),
        CHUNKS,
        {"optimizer": sgd, "clip_grad_norm": 0.5},
    ),
    "target, heads": (
        lambda: FixedTarget(0.1, mask_heads=True),
        {"multi_head": True, "target": lambda: mlp(n_out=6)},
        {},
    ),
    "target, Fisher": (lambda: FixedTarget(0.1, fisher_weights=True, n_fisher=7), {}, {}),
    "value": (lambda: ValuePreserving(0.1), CHUNKS, {}),
    "one task a step": (lambda: FixedTarget(0.1, tasks_per_step=1), {}, {}),
    "Jacobian": (lambda: Jacobian(0.1), CHUNKS, {}),
    "EWC": (lambda: EWC(), CHUNKS, {}),
    "EWC, some": (lambda: EWC(n_fisher=7, online=False), {}, {"prior_variance": 1.0}),
    "EWC, Kronecker": (lambda: EWC(structure="kronecker"), CHUNKS, {}),
    "EWC, Kronecker, some": (lambda: EWC(structure="kronecker", n_fisher=7), CHUNKS, {}),
    "from scratch": (lambda: None, {}, {"train_from_scratch": True}),
}


def without_checksums(state):
    if isinstance(state, list):
        return [without_checksums(part) for part in state]
    if not isinstance(state, dict):
        return state
    return {k: without_checksums(v) for k, v in state.items() if "checksum" not in str(k)}


def state_of(strategy):
    state = {n: v for n, v in strategy.model.state_dict().items() if isinstance(v, torch.Tensor)}
    regularizer = strategy.regularizer
    return [state, None if regularizer is None else without_checksums(regularizer.state_dict())]


def train(process, regularizer, *plugins, seed=7, stream=None, shuffle=False, **options):
    """Three experiences; of a mini-batch of ten, each of two processes has half."""
    torch.manual_seed(seed)
    target = options.pop("target", lambda: mlp(n_out=2))()
    names = ("hypernet", "multi_head")
    model = hyper_model(target, **{n: options.pop(n) for n in names if n in options})
    options["optimizer"] = options.pop("optimizer", adam)(model.parameters())
    torch.manual_seed(100 + (process or 0))
    size = 10 if process is None else 5
    strategy = learner(model, regularizer, *plugins, train_mb_size=size, **options)
    for experience in task_stream(n_tasks=3).train_stream if stream is None else stream:
        strategy.train(experience, shuffle=shuffle)
    return strategy


def trainings(process):
    return {
        name: state_of(train(process, regularizer(), **model, **options))
        for name, (regularizer, model, options) in TRAININGS.items()
    }


def different_starts(process):
    """Seeds and generators are each process's own, samples are odd, and some tasks are in one."""
    stream, even = (task_stream(n_tasks=3, n_samples=n).train_stream for n in (17, 16))
    generator = torch.Generator().manual_seed(process)
    regularizer = FixedTarget(
        0.1, tasks_per_step=1, generator=generator, fisher_weights=True, n_fisher=6
    )
    return [
        state_of(train(process, regularizer, seed=process, stream=stream, shuffle=True)),
        state_of(
            train(
                process,
                ValuePreserving(0.1),
                ClipGradientPlugin(value=0.3),
                seed=process,
                stream=[two_tasks_in_one(*even[:2]), even[2]],
                shuffle=True,
                in_memory=False,
                target=normalised,
            )
        ),
        state_of(
            train(
                process,
                EWC(n_fisher=9),
                seed=process,
                stream=stream,
                shuffle=True,
                criterion=nn.CrossEntropyLoss(torch.tensor([1.0, 3.0])),
            )
        ),
    ]


def posteriors(process):
    """EWC of odd numbers of samples, at weights that do not move."""

    def still(parameters):
        return torch.optim.SGD(parameters, 0.0)

    return {
        (structure, n_samples, n_fisher): state_of(
            train(
                process,
                EWC(structure=structure, n_fisher=n_fisher),
                optimizer=still,
                stream=task_stream(n_tasks=2, n_samples=n_samples).train_stream,
                **CHUNKS,
            )
        )
        for structure in ("diagonal", "kronecker")
        for n_samples, n_fisher in [(17, None), (17, 6), (1, None)]
    }


def evaluated_between(process):
    """Evaluations of all tasks during a training, which add embeddings of those to come."""
    results = []
    for hypernet in ({}, {"generate": ["0.weight", "0.bias"]}):
        torch.manual_seed(process)
        stream = task_stream(n_tasks=3, n_samples=17)
        plugins = EvaluateAll(stream.test_stream), TaskInferencePlugin()
        strategy = learner(hyper_model(hypernet=hypernet), FixedTarget(0.1), *plugins)
        for experience in stream.train_stream:
            strategy.train(experience)
        results.append(state_of(strategy))
    return results


def evaluations(process):
    accuracy = EvaluationPlugin(accuracy_metrics(experience=True), loggers=[])
    strategy = train(process, FixedTarget(0.1), TaskInferencePlugin(), evaluator=accuracy)
    stream = task_stream(n_tasks=3, n_samples=17).test_stream
    results = {n: v for n, v in strategy.eval(stream).items() if n.startswith("Top1")}
    return [results, accuracy.all_metric_results["Hypernet/TaskLoss"][1]]


def wrapped_model(process):
    learner(DistributedDataParallel(hyper_model()))


def in_one_call(process):
    torch.manual_seed(process)
    strategy = Hypernet(
        model=mlp(n_out=2), train_mb_size=5, evaluator=None, hidden=(4,), embedding_dim=2
    )
    for experience in task_stream(n_tasks=2).train_stream:
        strategy.train(experience)
    return state_of(strategy)


AGREED = [trainings, different_starts, posteriors, evaluated_between, evaluations, in_one_call]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return in_two_processes(tmp_path_factory.mktemp("processes"), *AGREED, wrapped_model)


@pytest.mark.parametrize("job", [job.__name__ for job in AGREED])
def test_processes_agree_bit_for_bit(results, job):
    first, second = results[job]
    assert isinstance(first, (dict, list)), first
    assert same(first, second)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", TRAININGS)
def test_two_halves_of_a_batch_are_trained_as_the_whole(results, name):
    regularizer, model, options = TRAININGS[name]
    alone = state_of(train(None, regularizer(), **model, **options))
    assert_close(results["trainings"][0][name], alone, 1e-8)


@pytest.mark.usefixtures("float64")
def test_posteriors_are_those_of_one_process(results):
    alone = posteriors(None)
    for name, state in results["posteriors"][0].items():
        assert_close(state, alone[name], 1e-10)


@pytest.mark.usefixtures("float64")
def test_evaluations_are_of_all_samples_and_losses_of_the_whole_batch(results):
    alone = evaluations(None)
    for found, expected in zip(results["evaluations"][0], alone, strict=True):
        assert len(found) > 1
        assert found == pytest.approx(expected)


def test_a_wrapped_model_is_refused(results):
    for text in results["wrapped_model"]:
        assert text.startswith("TypeError: model is wrapped in DistributedDataParallel; pass the")
