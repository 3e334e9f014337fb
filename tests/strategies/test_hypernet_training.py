"""Training through a hypernetwork: what the authors' loop does not have."""

import pytest
import torch
from avalanche.benchmarks import (
    CLScenario,
    split_online_stream,
    tensors_benchmark,
    with_task_labels,
)
from avalanche.training.plugins import LwFPlugin, ReplayPlugin
from torch import nn

from avalanche_hnet import EWC, FixedTarget, Jacobian
from tests.support.hypernet_strategies import (
    OWN_CHUNKS,
    PREFIX,
    adam,
    assert_same_weights,
    model_weights,
    trained,
)
from tests.support.hypernets import adapted, hyper_model, learner, values
from tests.support.models import mlp
from tests.support.oracles import loop_fisher
from tests.support.strategies import naive
from tests.support.streams import task_stream, tensors, two_tasks_in_one
from tests.support.targets import with_batch_norm


def test_without_regulariser_it_is_naive_fine_tuning():
    stream = task_stream(3).train_stream
    _, found = trained(stream)
    torch.manual_seed(0)
    model = hyper_model()
    strategy = naive(model)
    for experience, weights in zip(stream, found, strict=True):
        strategy.train(experience, shuffle=False)
        assert_same_weights({n: p.detach() for n, p in model.named_parameters()}, weights)


OTHERS = [
    (lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.1, nesterov=True)),
    (lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.1)),
]


@pytest.mark.parametrize("optimizer", OTHERS)
@pytest.mark.parametrize("hypernet", [{}, OWN_CHUNKS])
@pytest.mark.parametrize("plugin", [None, ReplayPlugin, LwFPlugin])
def test_earlier_embeddings_are_constant(optimizer, hypernet, plugin):
    """To the last bit, even where samples of their tasks are replayed."""
    plugins = [] if plugin is None else [plugin(20) if plugin is ReplayPlugin else plugin(1.0, 2.0)]
    model, weights = trained(
        task_stream(3).train_stream,
        FixedTarget(),
        *plugins,
        model=lambda: hyper_model(hypernet=hypernet),
        optimizer=optimizer,
        clip_grad_norm=1.0,
    )
    for task in range(3):
        for name in model.hypernetwork.task_parameters(task):
            name = PREFIX + name
            for later in weights[task + 1 :]:
                assert torch.equal(later[name], weights[task][name]), name


def test_parameters_of_other_tasks_are_constant():
    """Heads and statistics that are not generated, too."""

    def model():
        hypernet = {"generate": "3.*"}
        return hyper_model(with_batch_norm(), hypernet=hypernet, remaining="per_task")

    found, weights = trained(
        task_stream(3).train_stream, FixedTarget(), ReplayPlugin(20), model=model
    )
    own = found.task_parameters(0)
    assert len(own) == 5
    for name in own:
        assert torch.equal(weights[2][name], weights[0][name]), name


def test_several_tasks_in_one_experience():
    """All of their embeddings are trained together, and then protected and constant together."""
    stream = task_stream(3).train_stream
    both = two_tasks_in_one(stream[0], stream[2])
    moved = []
    for beta in (0.0, 10.0):
        model, weights = trained(
            [both, stream[1]], FixedTarget(beta), model=hyper_model, optimizer=adam
        )
        assert model.trained_task_labels == (0, 2, 1)
        for number in (0, 1):
            name = f"{PREFIX}embeddings.{number}"
            assert torch.equal(weights[0][name], weights[1][name])
        torch.manual_seed(0)
        start = adapted(hyper_model(), [both]).hypernetwork
        for number in (0, 1):
            assert not torch.equal(
                start.embeddings[number], weights[0][f"{PREFIX}embeddings.{number}"]
            )
        moved.append(weight_distance(weights, (0, 1)))
    assert moved[1] < 0.5 * moved[0]


def weight_distance(weights, tasks):
    """Of the weights generated for the tasks, between the first and the last experience."""
    flat = []
    for found in (weights[0], weights[-1]):
        model = hyper_model()
        while model.hypernetwork.n_tasks < 1 + max(tasks):
            model.hypernetwork.add_task()
        state = {n.removeprefix(PREFIX): w for n, w in found.items() if n.startswith(PREFIX)}
        model.hypernetwork.load_state_dict(state, strict=False)
        flat.append(model.hypernetwork(tasks))
    return (flat[0] - flat[1]).norm().item()


def noisy_stream():
    """Two tasks whose inputs are changed in training, but not in evaluation."""
    data = [(torch.randn(20, 6), torch.arange(20) % 2) for _ in range(2)]
    stream = tensors_benchmark(
        train_tensors=data,
        test_tensors=data,
        task_labels=[0, 1],
        train_transform=lambda x: 5 * x,
        eval_transform=lambda x: x,
    ).train_stream
    return stream, [[part.clone() for part in pair] for pair in data]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("multi_head", [False, True])
def test_fisher_of_generated_weights_is_on_the_tasks_own_samples_as_evaluated(multi_head):
    """Not on replayed ones, nor on those of another task of the experience."""
    stream, data = noisy_stream()
    regularizer = FixedTarget(fisher_weights=True)
    model = hyper_model(mlp(n_out=4 if multi_head else 2), multi_head=multi_head)
    strategy = learner(model, regularizer, ReplayPlugin(40), lr=0.01)
    for experience in [two_tasks_in_one(*stream)] if multi_head else stream:
        strategy.train(experience)
    network = model.main_network(1)  # of the last experience
    expected = loop_fisher(network, *data[1], nn.functional.cross_entropy)
    expected = torch.cat([f.flatten() for f in expected.values()])
    torch.testing.assert_close(regularizer.state_dict()["fisher"]["1"], expected)


@pytest.mark.usefixtures("float64")
def test_fisher_of_the_hypernetwork_is_on_the_experiences_samples_as_evaluated():
    stream, data = noisy_stream()
    regularizer, model = EWC(prior_variance=2.0), hyper_model()
    strategy, total = learner(model, regularizer, ReplayPlugin(40), lr=0.01), {}
    for label, experience in enumerate(stream):
        strategy.train(experience)
        labels = torch.full((20,), label)
        found = loop_fisher(model, *data[label], nn.functional.cross_entropy, labels)
        for name, fisher in found.items():
            total[name] = total.get(name, 0.5) + 20 * fisher
    for name, precision in regularizer.posterior.precision.items():
        torch.testing.assert_close(precision, total[PREFIX + name])


def test_number_of_samples_for_the_fisher():
    found = []
    for n_fisher in (None, 20, 5):
        regularizer = FixedTarget(fisher_weights=True, n_fisher=n_fisher)
        trained(task_stream(1).train_stream, regularizer)
        found.append(regularizer.state_dict()["fisher"]["0"])
    torch.testing.assert_close(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


@pytest.mark.parametrize(("regularizer", "strong"), [(FixedTarget, 10.0), (EWC, 100.0)])
def test_regularisers_protect_what_was_learned(regularizer, strong):
    moved = []
    for beta in (0.0, strong):
        stream = task_stream(2).train_stream
        _, weights = trained(stream, regularizer(beta), lr=0.01, train_epochs=5)
        moved.append(weight_distance(weights, (0,)))
    assert moved[1] < 0.7 * moved[0]


def test_evaluations_in_between_change_nothing():
    benchmark, weights = task_stream(3), []
    for options in ({}, {"eval_every": 1, "peval_mode": "iteration"}):
        torch.manual_seed(0)
        model = hyper_model(with_batch_norm())
        strategy = learner(model, FixedTarget(), optimizer=adam(model.parameters()), **options)
        for experience in benchmark.train_stream:
            strategy.train(experience, eval_streams=[benchmark.test_stream], shuffle=False)
        weights.append(values(model))
    assert_same_weights(*weights)


@pytest.mark.parametrize("trained_parameters", [(), ("trunk.0.weight",), ("output.bias",)])
@pytest.mark.parametrize("regularizer", [FixedTarget, Jacobian, EWC])
def test_parameters_of_the_hypernetwork_that_the_user_froze(regularizer, trained_parameters):
    def model():
        found = hyper_model()
        for name in trained_parameters:
            found.hypernetwork.get_parameter(name).requires_grad_(False)
        return found

    _, weights = trained(task_stream(2).train_stream, regularizer(1.0), model=model)
    for name, parameter in model_weights(model).items():
        assert torch.equal(weights[-1][name], parameter) == (
            name.removeprefix(PREFIX) in trained_parameters
        ), name


def in_pieces(stream, size, access_task_boundaries=True):
    """Avalanche's stream of small pieces of experiences, in the same order."""
    pieces = split_online_stream(
        stream, size, shuffle=False, access_task_boundaries=access_task_boundaries
    )
    return with_task_labels(CLScenario([pieces])).streams.popitem()[1]


@pytest.mark.parametrize("prior_variance", [None, 0.5])
def test_an_online_stream_is_one_experience_of_each_task(prior_variance):
    stream, weights = task_stream(2).train_stream, []
    for experiences in (stream, in_pieces(stream, 5)):
        torch.manual_seed(0)
        model = hyper_model()
        options = {"optimizer": adam(model.parameters()), "train_epochs": 1}
        strategy = learner(model, FixedTarget(10.0), prior_variance=prior_variance, **options)
        for experience in experiences:
            strategy.train(experience, shuffle=False)
        weights.append(values(model))
    assert_same_weights(*weights)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("size", [5, 6])  # which divides the 20 samples, or does not
def test_all_samples_of_an_online_experience_are_taken_in_once(size):
    stream = task_stream(1).train_stream
    regularizer, model = EWC(prior_variance=2.0), hyper_model()
    strategy = learner(model, regularizer, train_epochs=1)
    for experience in in_pieces(stream, size):
        strategy.train(experience)
    expected = loop_fisher(
        model, *tensors(stream[0])[:2], nn.functional.cross_entropy, tensors(stream[0])[2]
    )
    for name, precision in regularizer.posterior.precision.items():
        torch.testing.assert_close(precision, 0.5 + 20 * expected[PREFIX + name])
    assert "Hypernet/WeightsMoved/Task000" in strategy.evaluator.get_last_metrics()


@pytest.mark.parametrize("boundaries", [False, True])
@pytest.mark.parametrize("multi_head", [False, True])
def test_online_streams_with_and_without_boundaries(boundaries, multi_head):
    model = hyper_model(mlp(n_out=4 if multi_head else 2), multi_head=multi_head)
    strategy = learner(model, FixedTarget(fisher_weights=True), train_epochs=1)
    for experience in in_pieces(task_stream(2).train_stream, 6, boundaries):
        strategy.train(experience)
    assert model.trained_task_labels == (0, 1)


def test_from_scratch_does_not_depend_on_what_was_trained_before():
    """θ and all else that is shared start anew; the result is that of training each task alone."""

    def model():
        return adapted(hyper_model(hypernet={"generate": "2.*"}), stream, training=False)

    stream = task_stream(3).train_stream
    options = {"train_from_scratch": True, "optimizer": adam, "model": model}
    _, one_by_one = trained(stream, **options)
    for task in range(3):
        _, alone = trained([stream[task]], **options)
        own = {n for n in alone[0] if "embeddings" not in n or n.endswith(str(task))}
        for name in own:
            assert torch.equal(one_by_one[task][name], alone[0][name]), (task, name)


def test_from_scratch_a_task_that_comes_back_starts_anew():
    stream = task_stream(task_labels=[0, 0]).train_stream
    _, weights = trained(stream, train_from_scratch=True, optimizer=adam)
    _, alone = trained([stream[1]], train_from_scratch=True, optimizer=adam)
    assert_same_weights(weights[-1], alone[-1])


def test_from_scratch_goes_on_with_the_initial_weights():
    stream, ends = task_stream(2).train_stream, []
    for stops in (False, True):
        strategies = []
        for _ in range(1 + stops):
            torch.manual_seed(0)
            model = hyper_model()
            options = {"train_from_scratch": True, "optimizer": adam(model.parameters())}
            strategies.append(learner(model, **options))
        strategies[0].train(stream[0], shuffle=False)
        strategies[-1].model.load_state_dict(strategies[0].model.state_dict())
        strategies[-1].train(stream[1], shuffle=False)
        ends.append(values(strategies[-1].model))
    assert_same_weights(*ends)


def test_without_strength_previous_embeddings_stay_constant():
    stream = task_stream(2).train_stream
    regularizer = FixedTarget(0.0, train_previous_embeddings=True)
    model = hyper_model()
    optimizer = torch.optim.AdamW(model.parameters(), 0.1, weight_decay=1.0)
    strategy = learner(model, regularizer, optimizer=optimizer)
    strategy.train(stream[0])
    before = model.hypernetwork.embeddings[0].clone()
    strategy.train(stream[1])
    assert torch.equal(model.hypernetwork.embeddings[0], before)
