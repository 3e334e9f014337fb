"""Clipping in Avalanche's loop, against loops that are clipped by hand."""

import random

import pytest
import torch
import torch.nn.functional as F
from avalanche.training import AGEM, GEM, Cumulative, LwF, Naive, Replay
from avalanche.training.plugins import SupervisedPlugin, gem
from avalanche.training.supervised.lamaml import LaMAML

from avalanche_hnet import ClipGradientPlugin, PriorEWCPlugin
from tests.support.models import mlp
from tests.support.strategies import Recorder, naive
from tests.support.streams import task_stream, tensors

BOUNDS = [{"norm": 0.05}, {"value": 0.01}, {"norm": 0.05, "value": 0.02}, {"norm": 1e6}]


def clip_by_hand(gradients, norm=None, value=None):
    if value is not None:
        gradients = [torch.where(g.abs() > value, value * g.sign(), g) for g in gradients]
    if norm is not None:
        total = sum(g.square().sum() for g in gradients).sqrt()
        gradients = [g * min(1.0, norm / (total.item() + 1e-6)) for g in gradients]
    return gradients


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("bounds", BOUNDS)
def test_naive_equals_a_loop_in_plain_pytorch(bounds):
    model, recorder = mlp(n_out=2), Recorder()
    weights = [p.detach().clone() for p in model.parameters()]
    experience = task_stream(1, task_labels=[0]).train_stream[0]
    strategy = naive(model, ClipGradientPlugin(**bounds), recorder)
    strategy.train(experience, shuffle=False)
    x, y, _ = tensors(experience)
    expected = []
    for _epoch in range(2):
        for rows in torch.arange(len(x)).split(5):
            leaves = [w.clone().requires_grad_() for w in weights]
            names = [n for n, _ in model.named_parameters()]
            outputs = torch.func.functional_call(
                model, dict(zip(names, leaves, strict=True)), (x[rows],)
            )
            loss = F.cross_entropy(outputs, y[rows])
            gradients = clip_by_hand(torch.autograd.grad(loss, leaves), **bounds)
            weights = [w - 0.1 * g for w, g in zip(weights, gradients, strict=True)]
            expected.append(weights)
    found = [list(w.values()) for w in recorder.weights]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


class ClipsByHand(SupervisedPlugin):
    """Right before the optimizer's step, in a hook of the optimizer."""

    def __init__(self, **bounds):
        super().__init__()
        self.bounds, self.is_hooked, self.n_clipped = bounds, False, 0

    def before_training(self, strategy, **kwargs):
        if not self.is_hooked:
            strategy.optimizer.register_step_pre_hook(self._clip)
        self.is_hooked = True

    @torch.no_grad()
    def _clip(self, optimizer, args, kwargs):
        parameters = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        clipped = clip_by_hand([p.grad for p in parameters], **self.bounds)
        for p, gradient in zip(parameters, clipped, strict=True):
            self.n_clipped += not torch.equal(p.grad, gradient)
            p.grad.copy_(gradient)


def one_constraint(P, q, G, h, solver):  # noqa: N803 - named like those of qpsolvers
    """min ½ v P v + q v with v ≥ −h, of one number."""
    return (-q / P[0]).clip(min=-h)


@pytest.fixture
def _solver(monkeypatch):
    monkeypatch.setattr(gem.qpsolvers, "solve_qp", one_constraint)


@pytest.mark.usefixtures("float64", "_solver")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bounds", BOUNDS[:3])
@pytest.mark.parametrize("plugin_comes_first", [False, True])
@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        (Naive, {}),
        (Replay, {"mem_size": 20}),
        (LwF, {"alpha": 1.0, "temperature": 2.0}),
        (Cumulative, {}),
        (AGEM, {"patterns_per_exp": 10, "sample_size": 10}),
        (GEM, {"patterns_per_exp": 10, "memory_strength": 0.5}),
    ],
)
def test_the_full_gradient_is_clipped_whatever_made_it(
    strategy, options, plugin_comes_first, bounds
):
    stream, weights, counts = task_stream(2, task_labels=[0, 0]).train_stream, [], []
    for clips in (ClipGradientPlugin(**bounds), ClipsByHand(**bounds)):
        torch.manual_seed(0)
        random.seed(0)
        model = mlp(n_out=2)
        learner = naive(model, strategy=strategy, lr=1.0, **options)
        learner.plugins.insert(0 if plugin_comes_first else len(learner.plugins) - 1, clips)
        for experience in stream:
            learner.train(experience)
        weights.append([p.detach() for p in model.parameters()])
        counts.append(getattr(clips, "n_clipped", None))
    assert counts[1] > 0
    torch.testing.assert_close(*weights, rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("step", ["gradient", "implicit"])
def test_the_prior_is_clipped_in_the_gradient_but_not_in_implicit_steps(step):
    model = mlp(n_out=2)
    before = [p.detach().clone() for p in model.parameters()]
    experience, variance, lr = task_stream(1, task_labels=[0]).train_stream[0], 0.1, 0.1
    strategy = naive(
        model,
        ClipGradientPlugin(norm=1e-9),
        PriorEWCPlugin(prior_variance=variance, penalty_step=step),
        lr=lr,
        train_epochs=1,
        train_mb_size=20,
    )
    strategy.train(experience)
    shrinkage = 1 if step == "gradient" else 1 / (1 + lr / (variance * len(experience.dataset)))
    expected = [shrinkage * p for p in before]
    torch.testing.assert_close(
        [p.detach() for p in model.parameters()], expected, rtol=0, atol=1e-9
    )


def test_gradients_of_what_the_optimizer_does_not_hold_do_not_count():
    """They are not moved, and nobody sets them to zero."""

    def trained(held_back):
        torch.manual_seed(0)
        model = mlp(n_out=2)
        last = [*model.parameters()][-2:]
        for p in last:
            p.requires_grad_(held_back)
        rest = [p for p in model.parameters() if all(p is not q for q in last)]
        optimizer = torch.optim.SGD(rest, 0.1)
        strategy = naive(model, ClipGradientPlugin(norm=0.05), optimizer=optimizer)
        # Avalanche would give the optimizer all parameters.
        strategy.make_optimizer = lambda **kwargs: None
        strategy.train(task_stream(1, task_labels=[0]).train_stream[0], shuffle=False)
        return [p.detach() for p in model.parameters()]

    torch.testing.assert_close(trained(True), trained(False))


def test_meta_learning_is_refused_before_training():
    model = mlp(n_out=2)
    with pytest.raises(ValueError, match="ClipGradientPlugin does not go with LaMAML"):
        naive(model, ClipGradientPlugin(1.0), strategy=LaMAML).train(task_stream(1).train_stream[0])


@pytest.mark.parametrize("options", [{}, {"norm": -1.0}, {"value": 0.0}])
def test_bad_bounds_are_refused_at_construction(options):
    with pytest.raises(ValueError, match=r"norm|value"):
        ClipGradientPlugin(**options)
