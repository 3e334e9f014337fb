import pickle
from itertools import combinations

import dill
import pytest
import torch
from avalanche.benchmarks import (
    CLScenario,
    split_online_stream,
    tensors_benchmark,
    with_task_labels,
)
from avalanche.checkpointing import checkpoint
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import (
    EarlyStoppingPlugin,
    EvaluationPlugin,
    EWCPlugin,
    LRSchedulerPlugin,
    LwFPlugin,
    ReplayPlugin,
    SupervisedPlugin,
)
from torch import nn

from avalanche_hnet import (
    EWC,
    FixedTarget,
    Gaussian,
    Jacobian,
    PriorEWCPlugin,
    ValuePreserving,
)
from avalanche_hnet.benchmarks import Regression1D
from tests.hypernets import (
    SGD,
    Adagrad,
    Adam,
    AuthorsLoop,
    adapted,
    hyper_model,
    learner,
    tensors,
    values,
)
from tests.models import mlp
from tests.oracles import loop_fisher
from tests.streams import regression_stream, task_stream, two_tasks_in_one
from tests.test_hyper_model import TARGETS, stream_for, with_batch_norm
from tests.test_prior_ewc import Recorder, naive

PREFIX = "hypernetwork."


def adam(parameters, lr=0.01):
    return torch.optim.Adam(parameters, lr)


def sgd(parameters, lr=0.01):
    return torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=0.01)


def adagrad(parameters):
    return torch.optim.Adagrad(parameters, 0.01, initial_accumulator_value=0.1)


def hypernetwork_weights(weights):
    return {n.removeprefix(PREFIX): w for n, w in weights.items()}


def assert_equals_authors_loop(
    regularizer,
    plain=None,
    *plugins,
    model_options=None,
    labels=(0, 1, 2),
    optimizer=adam,
    reset=True,
    drawn=None,
    **options,
):
    """Losses and weights of every iteration of all experiences."""
    experiences = task_stream(len(labels), task_labels=list(labels)).train_stream
    plain = {"reset": reset} | (plain or {})
    model_options = dict(model_options or {})
    n_out = model_options.pop("n_out", 2)
    model = hyper_model(mlp(n_out=n_out), **model_options)
    adapted(model, experiences, training=False)  # so that all embeddings are known from the start
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    loop = AuthorsLoop(hypernetwork_weights(start), n_out=n_out, **plain)
    recorder, optimizer = Recorder(), optimizer(model.parameters())
    plugins = [p(optimizer) if callable(p) else p for p in plugins]
    strategy = learner(model, regularizer, *plugins, recorder, optimizer=optimizer, **options)
    for experience in experiences:
        strategy.train(experience, shuffle=False, reset_optimizer_state=reset)
        x, y, t = tensors(experience)
        if drawn is not None:
            drawn.expected = [hypernetwork_weights(w) for w in recorder.weights]
        loop.train(x, y, int(t[0]), choices=drawn)
    assert len(recorder.weights) == len(loop.history) == 8 * len(labels)
    torch.testing.assert_close(recorder.losses, loop.losses, rtol=1e-9, atol=1e-12)
    for iteration, (weights, expected) in enumerate(
        zip(recorder.weights, loop.history, strict=True)
    ):
        found = hypernetwork_weights(weights)
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(
                found[name],
                expected[name],
                rtol=1e-9,
                atol=1e-9,
                msg=lambda m, name=name, i=iteration: f"{name} after iteration {i}: {m}",
            )
    return loop


# Every iteration equals the authors' loop.

BETA = 0.5
FIXED = {"kind": "fixed", "beta": BETA}
CHUNKS = {"chunk_size": 13}
OWN_CHUNKS = {"chunk_size": 13, "task_specific_chunk_embeddings": True}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("hypernet", [{}, CHUNKS, OWN_CHUNKS])
@pytest.mark.parametrize("lookahead", [None, "sgd", "optimizer"])
@pytest.mark.parametrize("form", ["direct", "quadratic"])
def test_fixed_target_equals_the_authors_loop(hypernet, lookahead, form):
    assert_equals_authors_loop(
        FixedTarget(BETA, lookahead=lookahead, form=form),
        FIXED | {"lookahead": lookahead},
        model_options={"hypernet": hypernet},
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    ("optimizer", "plain"), [(adam, lambda: Adam(0.01)), (sgd, lambda: SGD(0.01))]
)
@pytest.mark.parametrize("lookahead", ["sgd", "optimizer"])
def test_differentiable_lookahead_equals_the_authors_loop(reset, optimizer, plain, lookahead):
    assert_equals_authors_loop(
        FixedTarget(BETA, lookahead=lookahead, differentiable_lookahead=True),
        FIXED | {"lookahead": lookahead, "differentiable": True, "optimizer": plain},
        optimizer=optimizer,
        reset=reset,
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", ["value-preserving", "jacobian"])
@pytest.mark.parametrize("lookahead", ["sgd", "optimizer"])
@pytest.mark.parametrize("differentiable", [False, True])
def test_other_output_regularisers_equal_the_authors_loop(kind, lookahead, differentiable):
    cls = {"value-preserving": ValuePreserving, "jacobian": Jacobian}[kind]
    beta = 50.0  # its gradients are small
    assert_equals_authors_loop(
        cls(beta, lookahead=lookahead, differentiable_lookahead=differentiable),
        {
            "kind": kind,
            "beta": beta,
            "lookahead": lookahead,
            "differentiable": differentiable,
            "optimizer": lambda: SGD(0.01),
        },
        optimizer=sgd,
        model_options={"hypernet": CHUNKS},
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("options", [{}, {"online": False}, {"gamma": 0.8}])
def test_ewc_equals_the_authors_loop(options):
    assert_equals_authors_loop(
        EWC(20.0, prior_variance=0.5, **options),
        {"kind": "ewc", "beta": 20.0, "variance": 0.5, "lookahead": None, **options},
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("hypernet", [{}, OWN_CHUNKS])
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("differentiable", [False, True])
def test_training_previous_embeddings_equals_the_authors_loop(hypernet, reset, differentiable):
    loop = assert_equals_authors_loop(
        FixedTarget(BETA, train_previous_embeddings=True, differentiable_lookahead=differentiable),
        FIXED
        | {
            "train_previous": True,
            "differentiable": differentiable,
            "optimizer": lambda: SGD(0.01),
        },
        model_options={"hypernet": hypernet},
        optimizer=sgd,
        reset=reset,
    )
    assert not torch.equal(loop.history[-1]["embeddings.0"], loop.history[7]["embeddings.0"])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("form", ["direct", "quadratic"])
@pytest.mark.parametrize("hypernet", [{}, CHUNKS])
@pytest.mark.parametrize("masked", [False, True])
def test_heads_equal_the_authors_loop(form, hypernet, masked):
    assert_equals_authors_loop(
        FixedTarget(BETA, mask_heads=masked, form=form),
        FIXED | {"multi_head": True, "masked": masked},
        model_options={"n_out": 6, "multi_head": True, "hypernet": hypernet},
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("multi_head", [False, True])
def test_fisher_weights_equal_the_authors_loop(multi_head):
    assert_equals_authors_loop(
        FixedTarget(100.0, fisher_weights=True, mask_heads=multi_head),
        {"beta": 100.0, "fisher_weights": True, "multi_head": multi_head, "masked": multi_head},
        model_options={"n_out": 6 if multi_head else 2, "multi_head": multi_head},
    )


@pytest.mark.usefixtures("float64")
def test_stored_targets_equal_the_authors_loop():
    assert_equals_authors_loop(FixedTarget(BETA, targets="stored"), FIXED)


class Subsets:
    """All subsets of ``size`` tasks, of which one must explain each step."""

    def __init__(self, size):
        self.size, self.expected = size, []

    def __call__(self, tasks):
        return [list(c) for c in combinations(tasks, min(self.size, len(tasks)))]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("form", ["direct", "quadratic"])
def test_some_tasks_per_step_equal_the_authors_loop(form):
    loop = assert_equals_authors_loop(
        FixedTarget(BETA, tasks_per_step=2, form=form),
        FIXED,
        labels=(0, 1, 2, 3),
        drawn=Subsets(2),
    )
    assert {tuple(tasks) for tasks in loop.drawn[24:]} == {(0, 1), (0, 2), (1, 2)}


@pytest.mark.usefixtures("float64")
def test_a_task_that_comes_back_is_not_regularised_against_itself():
    assert_equals_authors_loop(FixedTarget(BETA), FIXED, labels=(0, 1, 0))
    assert_equals_authors_loop(
        FixedTarget(BETA, train_previous_embeddings=True),
        FIXED | {"train_previous": True},
        labels=(0, 1, 0, 2),
    )
    assert_equals_authors_loop(FixedTarget(BETA), FIXED, labels=(0, 0))
    assert_equals_authors_loop(EWC(20.0), {"kind": "ewc", "beta": 20.0}, labels=(0, 1, 0))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("clip", [0.1, 0.3])
def test_clipping_equals_the_authors_loop(clip, differentiable):
    assert_equals_authors_loop(
        FixedTarget(20.0, differentiable_lookahead=differentiable),
        {
            "beta": 20.0,
            "clip": clip,
            "differentiable": differentiable,
            "optimizer": lambda: SGD(0.01),
        },
        optimizer=sgd,
        clip_grad_norm=clip,
    )


@pytest.mark.usefixtures("float64")
def test_scheduler_equals_the_authors_loop():
    """θ, embeddings and the lookahead follow the learning rate."""
    assert_equals_authors_loop(
        FixedTarget(BETA),
        FIXED | {"decay_per_epoch": 0.1},
        lambda optimizer: LRSchedulerPlugin(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1)),
    )


@pytest.mark.usefixtures("float64")
def test_custom_embedding_optimizer_has_its_own_learning_rate():
    embedding_optimizer = lambda: SGD(0.2, momentum=0, weight_decay=0)  # noqa: E731
    assert_equals_authors_loop(
        FixedTarget(BETA),
        FIXED | {"decay_per_epoch": 0.1, "embedding_optimizer": embedding_optimizer},
        lambda optimizer: LRSchedulerPlugin(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1)),
        embedding_optimizer=lambda parameters: torch.optim.SGD(parameters, 0.2),
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("reset", [False, True])
def test_adagrad_equals_the_authors_loop(reset):
    """Avalanche gives new parameters an empty state, with which Adagrad cannot start."""
    assert_equals_authors_loop(
        FixedTarget(BETA, train_previous_embeddings=True),
        FIXED | {"train_previous": True, "optimizer": lambda: Adagrad(0.01)},
        optimizer=adagrad,
        reset=reset,
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("regularizer", [None, FixedTarget(0.0), EWC(0.0)])
def test_fine_tuning_equals_the_authors_loop(regularizer):
    assert_equals_authors_loop(regularizer, {"beta": 0.0})


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("hypernet", [{}, CHUNKS])
@pytest.mark.parametrize("differentiable", [False, True])
def test_prior_over_generated_weights_equals_the_loop(hypernet, differentiable):
    assert_equals_authors_loop(
        FixedTarget(BETA, differentiable_lookahead=differentiable),
        FIXED
        | {
            "prior_variance": 0.5,
            "differentiable": differentiable,
            "optimizer": lambda: SGD(0.01),
        },
        optimizer=sgd,
        model_options={"hypernet": hypernet},
        prior_variance=0.5,
    )


@pytest.mark.usefixtures("float64")
def test_prior_has_the_scale_of_the_criterion_and_is_published():
    """A mean squared error is 2s²/D times the mean negative log-likelihood."""
    experience = Regression1D(n_train=6).train_stream[0]
    x, y, _ = tensors(experience)
    model = hyper_model(mlp(n_in=1, n_out=1))
    adapted(model, [experience])
    flat = model.hypernetwork([0])[0].detach()
    error = torch.nn.functional.mse_loss(model(x, 0), y).item()
    recorder = Recorder()
    strategy = learner(
        model,
        None,
        recorder,
        criterion=torch.nn.MSELoss(),
        likelihood=Gaussian(0.3),
        prior_variance=0.5,
        train_mb_size=6,
        train_epochs=1,
        log_every=1,
    )
    strategy.train(experience, shuffle=False)
    prior = 2 * 0.3**2 * (flat**2).sum().item() / (2 * 0.5 * 6)
    assert recorder.losses[0] == pytest.approx(error + prior, rel=1e-9)
    published = strategy.evaluator.get_last_metrics()
    assert published["Hypernet/Prior"] == pytest.approx(prior, rel=1e-9)
    assert published["Hypernet/TaskLoss"] == pytest.approx(error + prior, rel=1e-9)


class Halve(SupervisedPlugin):
    def __init__(self, event):
        super().__init__()
        setattr(self, event, self.halve)

    def halve(self, strategy, **kwargs):
        for p in strategy.model.parameters():
            if p.grad is not None:
                p.grad /= 2


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("event", ["after_backward", "before_update"])
def test_plugins_find_the_full_gradient(event):
    assert_equals_authors_loop(
        FixedTarget(BETA),
        FIXED | {"gradient_factor": 0.5, "optimizer": lambda: SGD(0.01)},
        Halve(event),
        optimizer=sgd,
    )


@pytest.mark.usefixtures("float64")
def test_training_from_scratch_equals_the_authors_loop():
    assert_equals_authors_loop(None, {"scratch": True, "beta": 0.0}, train_from_scratch=True)


# What the loop does not have.


def trained(stream, regularizer=None, *plugins, model=None, seed=0, **options):
    """A model and its weights after each experience."""
    torch.manual_seed(seed)
    model = hyper_model() if model is None else model()
    weights, results = [], []
    make = options.pop("optimizer", None)
    if make is not None:
        options["optimizer"] = make(model.parameters())
    strategy = learner(model, regularizer, *plugins, **options)
    for experience in stream:
        strategy.train(experience, shuffle=False)
        weights.append({n: p.detach().clone() for n, p in model.named_parameters()})
        results.append(strategy)
    return model, weights


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


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


class FirstSteps(SupervisedPlugin):
    """Weights before and after the first iteration of each experience."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def before_update(self, strategy, **kwargs):
        if strategy.clock.train_exp_iterations == 0:
            self.steps.append(values(strategy.model))

    def after_update(self, strategy, **kwargs):
        if strategy.clock.train_exp_iterations == 0:
            after = values(strategy.model)
            before = self.steps.pop()
            self.steps.append({n: after[n] - before[n] for n in after if n in before})


def test_embeddings_get_a_fresh_optimizer_in_each_experience():
    """Adam's first step is its learning rate. θ's goes on, as Avalanche's optimizers do."""
    steps = FirstSteps()
    trained(
        task_stream(task_labels=[0, 1, 0]).train_stream,
        FixedTarget(),
        steps,
        optimizer=lambda p: torch.optim.Adam(p, 0.01, eps=1e-12),
    )
    for first, task in zip(steps.steps, (0, 1, 0), strict=True):
        own = first[f"{PREFIX}embeddings.{task}"].abs()
        torch.testing.assert_close(own, torch.full_like(own, 0.01), rtol=1e-3, atol=0)
    theta = [step[f"{PREFIX}trunk.0.bias"].abs() for step in steps.steps]
    torch.testing.assert_close(theta[0], torch.full_like(theta[0], 0.01), rtol=1e-3, atol=0)
    assert not torch.allclose(theta[1], torch.full_like(theta[1], 0.01), rtol=1e-2, atol=0)


@pytest.mark.parametrize("make", [None, lambda p: torch.optim.SGD(p, 0.05)])
def test_embeddings_follow_the_scheduler_unless_their_optimizer_is_given(make):
    def frozen(optimizer):
        return torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)

    torch.manual_seed(0)
    model, recorder = hyper_model(), Recorder()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    strategy = learner(
        model,
        None,
        LRSchedulerPlugin(frozen(optimizer)),
        recorder,
        optimizer=optimizer,
        embedding_optimizer=make,
    )
    strategy.train(task_stream(1).train_stream[0])  # the second epoch from iteration 4
    for name in ("embeddings.0", "output.bias"):
        moves = [
            not torch.equal(a[PREFIX + name], b[PREFIX + name])
            for a, b in zip(recorder.weights[3:], recorder.weights[4:], strict=False)
        ]
        assert all(moves) if make and name == "embeddings.0" else not any(moves)


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
    """Two tasks of which training, but not evaluation, sees other inputs than there are."""
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


def model_weights(make):
    torch.manual_seed(0)
    return {n: p.detach() for n, p in make().named_parameters()}


# Optimizers.

DENSE = {
    "ASGD": {},
    "Adadelta": {},
    "Adafactor": {},
    "Adagrad": {},
    "Adam": {"amsgrad": True},
    "AdamW": {},
    "Adamax": {},
    "NAdam": {},
    "RAdam": {},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Rprop": {},
    "SGD": {"momentum": 0.9, "nesterov": True},
}


def test_all_optimizers_with_dense_gradients_are_tested():
    classes = {
        name
        for name, cls in vars(torch.optim).items()
        if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
    }
    assert classes - {"Optimizer", "SparseAdam", "LBFGS", "Muon"} <= DENSE.keys()


@pytest.mark.parametrize("name", [n for n in DENSE if hasattr(torch.optim, n)])
@pytest.mark.parametrize("train_previous", [False, True])
def test_every_optimizer_trains(name, train_previous):
    make, options = getattr(torch.optim, name), DENSE[name]
    regularizer = FixedTarget(train_previous_embeddings=train_previous)
    _, weights = trained(
        task_stream(2).train_stream, regularizer, optimizer=lambda p: make(p, lr=0.01, **options)
    )
    for before, after, task in zip(
        [model_weights(hyper_model), *weights], weights, (0, 1), strict=False
    ):
        for parameter in before:
            if "embeddings" not in parameter or parameter.endswith(str(task)):
                assert after[parameter].isfinite().all()
                assert not torch.equal(after[parameter], before[parameter]), parameter


class CountsFromTheStart(torch.optim.SGD):
    """Its constructor gives each parameter a state, as Adagrad's did before it was made lazy."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["count"] = torch.zeros(())

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["count"] += 1
        return super().step(closure)


@pytest.mark.parametrize("reset", [False, True])
def test_optimizers_whose_constructor_makes_a_state(reset):
    """Avalanche gives new parameters an empty one."""
    model, made = hyper_model(), []
    optimizer = CountsFromTheStart(model.parameters(), 0.01)
    strategy = learner(model, FixedTarget(train_previous_embeddings=True), optimizer=optimizer)
    for experience in task_stream(3).train_stream:
        strategy.train(experience, reset_optimizer_state=reset)
        made.append({n: int(optimizer.state[p]["count"]) for n, p in named(optimizer, model)})
    net = "hypernetwork."
    assert made[2][f"{net}output.bias"] == (8 if reset else 24)
    assert made[2][f"{net}embeddings.0"] == (8 if reset else 16)
    assert made[2][f"{net}embeddings.1"] == 8
    assert f"{net}embeddings.2" not in made[2]


def named(optimizer, model):
    present = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [(n, p) for n, p in model.named_parameters() if id(p) in present]


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {"maximize": True}])
def test_every_implementation_of_an_optimizer_trains(options):
    trained(
        task_stream(2).train_stream,
        FixedTarget(),
        optimizer=lambda p: torch.optim.Adam(p, 0.01, **options),
    )


def test_optimizers_that_cannot_be_used_say_so():
    experience = task_stream(1).train_stream[0]
    model = hyper_model()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    strategy = learner(model, FixedTarget(), optimizer=torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ValueError, match="LBFGS needs a closure"):
        strategy.train(experience)
    for name, weight in before.items():
        assert torch.equal(model.get_parameter(name), weight)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="not in this PyTorch")
def test_an_optimizer_that_embeddings_do_not_fit_asks_for_another():
    model = hyper_model()
    optimizer = torch.optim.Muon([p for p in model.parameters() if p.dim() == 2])
    message = "another optimizer like the given Muon.*pass an optimizer for the embeddings"
    with pytest.raises(ValueError, match=message):
        learner(model, FixedTarget(), optimizer=optimizer)


def test_groups_of_parameters_keep_their_options():
    torch.manual_seed(0)
    model = hyper_model()
    net = model.hypernetwork
    groups = [
        {"params": net.trunk.parameters(), "lr": 0.0},
        {"params": net.output.parameters(), "lr": 0.1},
    ]
    trunk, output = net.trunk[0].weight.clone(), net.output.weight.clone()
    strategy = learner(model, FixedTarget(), optimizer=torch.optim.SGD(groups))
    for experience in task_stream(2).train_stream:
        strategy.train(experience)
    assert torch.equal(net.trunk[0].weight, trunk)
    assert not torch.equal(net.output.weight, output)


def test_previous_embeddings_are_trained_with_several_groups_of_parameters():
    model = hyper_model()
    net = model.hypernetwork
    groups = [{"params": net.trunk.parameters()}, {"params": net.output.parameters(), "lr": 0.2}]
    regularizer = FixedTarget(train_previous_embeddings=True)
    strategy = learner(model, regularizer, optimizer=torch.optim.SGD(groups, 0.1))
    for experience in task_stream(2).train_stream:
        strategy.train(experience)


# Avalanche's plugins.


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
    """Turns weights round after every epoch but the first; remembers those before and after it."""

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
        with torch.no_grad():  # and nothing of the others is kept in the cache
            x = torch.randn(3, 6)
            expected = model.main_network(0).eval()(x)
            torch.testing.assert_close(model.eval()(x, 0), expected)


def test_loss_of_other_plugins_belongs_to_the_task():
    class Distance(SupervisedPlugin):
        """As if a plugin held one weight with all its might."""

        def before_backward(self, strategy, **kwargs):
            bias = strategy.model.hypernetwork.output.bias
            strategy.loss += 1000 * (bias[0] - 3.0) ** 2

    model, _ = trained(task_stream(1).train_stream, None, Distance(), lr=0.0005)
    assert abs(model.hypernetwork.output.bias[0].item() - 3.0) < 1e-3


# Targets.


@pytest.mark.parametrize(
    "regularizer",
    [
        lambda: FixedTarget(fisher_weights=True),
        lambda: Jacobian(),
        lambda: EWC(),
        lambda: FixedTarget(differentiable_lookahead=True),
    ],
)
@pytest.mark.parametrize("name", ["lenet", "own parameter", "tied weights", "lstm", "batch norm"])
@pytest.mark.filterwarnings("ignore:squared gradients")
def test_any_target_with_any_regulariser(regularizer, name):
    make, shape = TARGETS[name]
    model = hyper_model(make(), hypernet={"chunk_size": 40})
    strategy = learner(model, regularizer(), lr=0.001, train_mb_size=3)
    for experience in stream_for(shape).train_stream:
        strategy.train(experience)
    assert all(p.isfinite().all() for p in model.parameters())


def test_part_of_the_weights_generated():
    """What all tasks share and is not generated is trained, too."""

    def model():
        return hyper_model(hypernet={"generate": "2.*"})

    found, weights = trained(task_stream(2).train_stream, FixedTarget(), model=model)
    start = model_weights(model)
    for name in ("target.0.weight", "target.0.bias"):
        assert not torch.equal(start[name], weights[0][name])
        assert not torch.equal(weights[0][name], weights[1][name])
    assert found.hypernetwork.layout.n_weights == 18


def regression_tasks():
    from avalanche_hnet.benchmarks import Regression1D

    return Regression1D(n_train=20, n_test=10)


@pytest.mark.parametrize(
    ("regularizer", "noise"),
    [
        (lambda: FixedTarget(), None),
        (lambda: FixedTarget(fisher_weights=True, n_fisher=5), 1.0),
        (lambda: EWC(), 1.0),
        (lambda: EWC(), 0.05),
    ],
)
def test_regression(regularizer, noise):
    benchmark = regression_tasks()
    model = hyper_model(mlp(n_in=1, n_out=1))
    strategy = learner(
        model,
        regularizer(),
        criterion=nn.MSELoss(),
        likelihood=None if noise is None else Gaussian(noise),
        lr=0.001,
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
        assert all(p.isfinite().all() for p in model.parameters())
    assert model.trained_task_labels == (0, 1, 2)


@pytest.mark.usefixtures("float64")
def test_ewc_is_on_the_scale_of_the_criterion():
    """As in PriorEWCPlugin, of which this is the same on the hypernetwork's weights."""
    benchmark, weights = regression_tasks(), []
    for regularizer, plugins in ((EWC(1.0), []), (None, [PriorEWCPlugin(1.0)])):
        torch.manual_seed(0)
        model = hyper_model(mlp(n_in=1, n_out=1))
        strategy = learner(model, regularizer, *plugins, criterion=nn.MSELoss(), lr=0.001)
        for experience in benchmark.train_stream[:1]:
            # The prior of the embedding, which PriorEWCPlugin has besides, does not reach θ yet.
            strategy.train_epochs, strategy.train_mb_size = 1, 20
            strategy.train(experience, shuffle=False)
        theta = model.hypernetwork.shared_parameters()
        weights.append({n: p.detach() for n, p in theta.items()})
    torch.testing.assert_close(*weights, rtol=1e-9, atol=1e-12)


# State.


def resumable(beta=1.0):
    return {
        "fixed target": (lambda: FixedTarget(beta), {}),
        "stored": (lambda: FixedTarget(beta, targets="stored"), {}),
        "fisher": (lambda: FixedTarget(beta, fisher_weights=True), {}),
        "masked": (lambda: FixedTarget(beta, mask_heads=True), {"n_out": 8, "multi_head": True}),
        "previous": (lambda: FixedTarget(beta, train_previous_embeddings=True), {}),
        "per step": (lambda: FixedTarget(beta, tasks_per_step=1), {}),
        "jacobian": (lambda: Jacobian(beta), {}),
        "ewc": (lambda: EWC(beta), {}),
        "ewc offline": (lambda: EWC(beta, online=False), {}),
        "none": (lambda: None, {}),
    }


def fresh(name):
    make_regularizer, options = resumable()[name]
    options = dict(options)
    model = hyper_model(mlp(n_out=options.pop("n_out", 2)), **options)
    return learner(model, make_regularizer(), optimizer=adam(model.parameters()))


@pytest.mark.parametrize("name", resumable())
def test_going_on_from_saved_states_equals_never_stopping(tmp_path, name):
    """The optimizer starts anew in each experience, so that it need not be saved."""
    stream = task_stream(4).train_stream
    strategy = fresh(name)
    for experience in stream[:3]:
        strategy.train(experience, shuffle=False, reset_optimizer_state=True)
    state = [strategy.model.state_dict()]
    if strategy.regularizer is not None:
        state.append(strategy.regularizer.state_dict())
    torch.save(state, tmp_path / "state.pt")
    strategy.train(stream[3], shuffle=False, reset_optimizer_state=True)

    resumed = fresh(name)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.model.load_state_dict(state[0])
    if resumed.regularizer is not None:
        resumed.regularizer.load_state_dict(state[1])
    resumed.train(stream[3], shuffle=False, reset_optimizer_state=True)
    assert_same_weights(values(resumed.model), values(strategy.model))


def test_going_on_with_the_optimizers_memory(tmp_path):
    stream = task_stream(3).train_stream
    strategy = fresh("fixed target")
    for experience in stream[:2]:
        strategy.train(experience, shuffle=False)
    state = [strategy.model.state_dict(), strategy.optimizer.state_dict()]
    torch.save(state, tmp_path / "state.pt")
    strategy.train(stream[2], shuffle=False)

    resumed = fresh("fixed target")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.model.load_state_dict(state[0])
    resumed.optimizer.load_state_dict(state[1])
    resumed.train(stream[2], shuffle=False)
    assert_same_weights(values(resumed.model), values(strategy.model))


@pytest.fixture
def _checkpointing(monkeypatch):
    """Avalanche's, with ``pickle`` where dill does not get along with PyTorch's optimizers."""
    try:
        dill.dumps(torch.optim.SGD([torch.zeros(1)], 0.1))
    except pickle.PicklingError:
        monkeypatch.setattr(checkpoint, "dill", pickle)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_checkpointing")
@pytest.mark.parametrize("name", resumable())
def test_avalanches_checkpoints(tmp_path, name):
    stream, file = task_stream(4).train_stream, tmp_path / "checkpoint.pkl"
    strategy = fresh(name)
    for experience in stream[:3]:
        strategy.train(experience, shuffle=False)
    checkpoint.save_checkpoint(strategy, file)
    strategy.train(stream[3], shuffle=False)

    resumed, n_trained = checkpoint.maybe_load_checkpoint(fresh(name), file)
    assert n_trained == 3
    resumed.train(stream[3], shuffle=False)
    assert_same_weights(values(resumed.model), values(strategy.model))


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
    """θ and what is shared besides start anew; the result is that of training alone."""

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


def test_targets_without_task_labels_are_refused():
    experience = regression_stream([(torch.randn(4, 6), torch.randn(4, 2))]).train_stream[0]
    with pytest.raises(ValueError, match="task_labels"):
        learner(hyper_model(), criterion=nn.MSELoss()).train(experience)


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


def test_movement_is_known_after_going_on(tmp_path):
    stream, found = task_stream(3).train_stream, []
    strategy = learner(hyper_model(), FixedTarget())
    for experience in stream[:2]:
        strategy.train(experience)
    state = [strategy.model.state_dict(), strategy.movement.state_dict()]
    torch.save(state, tmp_path / "state.pt")
    resumed = learner(hyper_model(), FixedTarget())
    of_model, of_movement = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.model.load_state_dict(of_model)
    resumed.movement.load_state_dict(of_movement)
    resumed.train(stream[2])
    metrics = resumed.evaluator.get_all_metrics()
    found = [name for name in metrics if "WeightsMoved" in name]
    assert found == [f"Hypernet/WeightsMoved/Task{t:03}" for t in range(3)]
    assert metrics[found[0]][1][0] > 0


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


class Layouts(SupervisedPlugin):
    """Notes whether all gradients are laid out in memory as their parameters."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def before_update(self, strategy, **kwargs):
        parameters = [p for p in strategy.model.parameters() if p.grad is not None]
        self.seen.append(all(p.grad.stride() == p.stride() for p in parameters))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("form", ["direct", "quadratic"])
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_fused_optimizers_take_the_same_steps(form, optimizer):
    # Fused kernels read memory in order, whatever the layout: all of a parameter must have one.
    found, layouts = [], Layouts()
    for fused in (False, True):
        torch.manual_seed(3)
        model = hyper_model(hypernet=CHUNKS)
        strategy = learner(
            model,
            FixedTarget(0.1, form=form),
            layouts,
            optimizer=optimizer(model.parameters(), 0.01, fused=fused),
        )
        for experience in task_stream(3).train_stream:
            strategy.train(experience)
        found.append(values(model))
    assert layouts.seen
    assert all(layouts.seen)
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)
