"""Every iteration equals the authors' loop."""

from itertools import combinations

import pytest
import torch
from avalanche.training.plugins import LRSchedulerPlugin, SupervisedPlugin

from avalanche_hnet import (
    EWC,
    ClipGradientPlugin,
    FixedTarget,
    Gaussian,
    Jacobian,
    ValuePreserving,
)
from avalanche_hnet.benchmarks import Regression1D
from tests.support.authors_loop import SGD, Adagrad, Adam, AuthorsLoop
from tests.support.hypernet_strategies import CHUNKS, OWN_CHUNKS, PREFIX, adam
from tests.support.hypernets import adapted, hyper_model, learner
from tests.support.models import mlp
from tests.support.strategies import Recorder
from tests.support.streams import task_stream, tensors


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


BETA = 0.5


FIXED = {"kind": "fixed", "beta": BETA}


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
@pytest.mark.parametrize("by_plugin", [False, True])
def test_clipping_equals_the_authors_loop(clip, differentiable, by_plugin):
    assert_equals_authors_loop(
        FixedTarget(20.0, differentiable_lookahead=differentiable),
        {
            "beta": 20.0,
            "clip": clip,
            "differentiable": differentiable,
            "optimizer": lambda: SGD(0.01),
        },
        *([ClipGradientPlugin(norm=clip)] if by_plugin else []),
        optimizer=sgd,
        **({} if by_plugin else {"clip_grad_norm": clip}),
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_clipping_by_value_equals_the_authors_loop(clip, differentiable):
    assert_equals_authors_loop(
        FixedTarget(20.0, differentiable_lookahead=differentiable),
        {
            "beta": 20.0,
            "clip": clip,
            "clip_value": 0.01,
            "differentiable": differentiable,
            "optimizer": lambda: SGD(0.01),
        },
        ClipGradientPlugin(norm=clip, value=0.01),
        optimizer=sgd,
    )


@pytest.mark.usefixtures("float64")
def test_clipping_without_a_regulariser_equals_the_authors_loop():
    assert_equals_authors_loop(None, {"beta": 0.0, "clip": 0.1}, ClipGradientPlugin(norm=0.1))


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
