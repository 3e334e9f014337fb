"""The mathematics of an iteration, without a strategy, against autograd by hand."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from avalanche_hnet import FixedTarget, HyperNetwork, ValuePreserving
from avalanche_hnet.core.common.clipping import Clipping
from avalanche_hnet.core.common.gradients import add_gradients
from avalanche_hnet.core.regularizers import Experience, Penalty, Regularizer
from avalanche_hnet.strategies.hypernet_step import (
    look_ahead,
    penalty_ahead,
    task_gradients,
    weight_prior,
)

pytestmark = pytest.mark.usefixtures("float64")


LR, MOMENTUM, BETA = 0.1, 0.9, 0.7


PROTECTED, PRESENT = (0, 1), 2


WANTED = torch.linspace(-1, 1, 8)


def hypernetwork():
    ours = HyperNetwork(nn.Linear(3, 2), embedding_dim=2, hidden=(4,), activation=nn.Tanh)
    for _ in range(3):
        ours.add_task()
    return ours


def loss_of(ours, parameters=None):
    """Of the present task, whose weights are to be certain ones."""
    weights = functional_call(ours, parameters or {}, ([PRESENT],))
    return (weights - WANTED).pow(4).sum()


def generated(ours, parameters):
    return functional_call(ours, parameters, (list(PROTECTED),))


def begun(ours, regularizer):
    """The regulariser in an experience that began a little elsewhere."""
    now = {n: p.detach().clone() for n, p in ours.named_parameters()}
    with torch.no_grad():
        for parameter in ours.shared_parameters().values():
            parameter.add_(0.1 * torch.randn_like(parameter))
        regularizer.before_experience(ours, Experience(PROTECTED, 10))
        for name, parameter in ours.named_parameters():
            parameter.copy_(now[name])
    return regularizer


def optimizer_with_memory(ours):
    theta = ours.shared_parameters()
    optimizer = torch.optim.SGD(theta.values(), LR, momentum=MOMENTUM)
    for parameter in theta.values():
        optimizer.state[parameter]["momentum_buffer"] = torch.randn_like(parameter)
    return optimizer


def step_by_hand(optimizer, theta, gradients):
    velocity = [MOMENTUM * optimizer.state[p]["momentum_buffer"] for p in theta.values()]
    return {n: -LR * (v + g) for n, v, g in zip(theta, velocity, gradients, strict=True)}


def test_prior_of_the_generated_weights():
    weights = torch.randn(2, 8)
    prior = weight_prior(weights, variance=0.5, n_samples=10, scale=3.0)
    torch.testing.assert_close(prior, 3.0 * weights.square().sum() / (2 * 0.5 * 10))


@pytest.mark.parametrize("differentiable", [False, True])
def test_gradients_of_the_task_are_left_in_the_parameters(differentiable):
    ours = hypernetwork()
    theta, embedding = ours.shared_parameters(), ours.embeddings[PRESENT]
    expected = torch.autograd.grad(loss_of(ours), [*theta.values(), embedding])
    gradients = task_gradients(
        loss_of(ours), ours, [*theta.values()], differentiable=differentiable
    )
    for parameter, gradient in zip([*theta.values(), embedding], expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
        assert not parameter.grad.requires_grad
    assert ours.embeddings[0].grad is None
    assert gradients is None or gradients.keys() == set(theta.values())


@pytest.mark.parametrize("differentiable", [False, True])
def test_trained_embeddings_that_the_loss_does_not_reach_get_zeros(differentiable):
    ours = hypernetwork()
    previous = [ours.embeddings[task] for task in PROTECTED]
    theta = [*ours.shared_parameters().values(), *previous]
    gradients = task_gradients(loss_of(ours), ours, theta, previous, differentiable=differentiable)
    assert all(torch.equal(p.grad, torch.zeros(2)) for p in previous)
    assert gradients is None or gradients.keys() == set(theta)


def test_gradients_with_their_graph_can_be_differentiated():
    ours = hypernetwork()
    theta = [*ours.shared_parameters().values()]
    gradients = task_gradients(loss_of(ours), ours, theta, differentiable=True)
    by_hand = torch.autograd.grad(loss_of(ours), theta, create_graph=True)
    second_derivatives, expected = (
        torch.autograd.grad(sum(g.square().sum() for g in of_theta), theta)
        for of_theta in ([gradients[p] for p in theta], by_hand)
    )
    torch.testing.assert_close(second_derivatives, expected)


@pytest.mark.parametrize("max_norm", [0.01, 1e6])
def test_clipping_is_over_all_parameters_together(max_norm):
    ours = hypernetwork()
    parameters = [*ours.shared_parameters().values(), ours.embeddings[PRESENT]]
    gradients = torch.autograd.grad(loss_of(ours), parameters)
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    factor = min(1, max_norm / (norm + 1e-6))
    with_graph = task_gradients(
        loss_of(ours), ours, parameters[:-1], clippings=[Clipping(max_norm)], differentiable=True
    )
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(parameter.grad, factor * gradient)
    for parameter, gradient in with_graph.items():
        torch.testing.assert_close(gradient.detach(), parameter.grad)


@pytest.mark.parametrize("value", [1e-3, 1e6])
def test_clipped_values_are_differentiated_where_they_are_not_cut(value):
    ours = hypernetwork()
    theta = [*ours.shared_parameters().values()]
    by_hand = torch.autograd.grad(loss_of(ours), theta, create_graph=True)
    expected = [torch.where(g.abs() > value, value * g.detach().sign(), g) for g in by_hand]
    gradients = task_gradients(
        loss_of(ours), ours, theta, clippings=[Clipping(value=value)], differentiable=True
    )
    torch.testing.assert_close([gradients[p] for p in theta], expected)
    torch.testing.assert_close([p.grad for p in theta], [g.detach() for g in expected])
    second, by_hand = (
        torch.autograd.grad(sum(g.square().sum() for g in of_theta), theta)
        for of_theta in ([gradients[p] for p in theta], expected)
    )
    torch.testing.assert_close(second, by_hand)


@pytest.mark.parametrize("lookahead", ["sgd", "optimizer", None])
@pytest.mark.parametrize("differentiable", [False, True])
def test_step_ahead(lookahead, differentiable):
    """An optimizer's own is what a log wants where nothing looks ahead."""
    ours = hypernetwork()
    optimizer, theta = optimizer_with_memory(ours), ours.shared_parameters()
    gradients = task_gradients(
        loss_of(ours), ours, [*theta.values()], differentiable=differentiable
    )
    of_theta = torch.autograd.grad(loss_of(ours), [*theta.values()])
    expected = step_by_hand(optimizer, theta, of_theta)
    if lookahead == "sgd":
        expected = {n: -LR * g for n, g in zip(theta, of_theta, strict=True)}
    step = look_ahead(optimizer, gradients, lookahead, differentiable)
    assert len(step) == len(theta)
    for name, change in expected.items():
        torch.testing.assert_close(step[theta[name]].detach(), change)
        assert step[theta[name]].requires_grad == differentiable


@pytest.mark.parametrize("cls", [FixedTarget, ValuePreserving])
@pytest.mark.parametrize("lookahead", ["sgd", "optimizer"])
@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_full_gradient_equals_autograd_of_the_whole_expression(
    cls, lookahead, differentiable, scale
):
    ours = hypernetwork()
    optimizer, theta = optimizer_with_memory(ours), ours.shared_parameters()
    regularizer = begun(
        ours, cls(BETA, lookahead=lookahead, differentiable_lookahead=differentiable)
    )

    of_task = torch.autograd.grad(loss_of(ours), [*theta.values()], create_graph=True)
    change = step_by_hand(optimizer, theta, of_task)
    if lookahead == "sgd":
        change = {n: -LR * g for n, g in zip(theta, of_task, strict=True)}
    if not differentiable:
        change = {n: c.detach() for n, c in change.items()}
    moved = generated(ours, {n: p + change[n] for n, p in theta.items()})
    if cls is FixedTarget:
        targets = ours.product(regularizer._before).detach()
    else:
        targets = generated(ours, theta)
    value = scale * BETA / len(PROTECTED) * (moved - targets).square().sum()
    of_penalty = torch.autograd.grad(value, [*theta.values()])

    gradients = task_gradients(
        loss_of(ours), ours, [*theta.values()], differentiable=differentiable
    )
    step = look_ahead(optimizer, gradients, lookahead, differentiable)
    penalty = penalty_ahead(regularizer, theta, step, scale)
    torch.testing.assert_close(penalty.value, value.detach())
    assert list(penalty.gradients) == list(theta)
    torch.testing.assert_close(tuple(penalty.gradients.values()), of_penalty)

    add_gradients(theta, penalty.gradients)
    for parameter, first, second in zip(theta.values(), of_task, of_penalty, strict=True):
        torch.testing.assert_close(parameter.grad, first.detach() + second)
    assert all(ours.embeddings[task].grad is None for task in PROTECTED)


class Remembers(Regularizer):
    """Takes down which change it is given."""

    is_active = True

    def penalty(self, parameters, change=None, *, through_change=False):
        self.change = change
        return Penalty(torch.ones(()), {n: torch.zeros_like(p) for n, p in parameters.items()}, {})


@pytest.mark.parametrize("lookahead", [None, "optimizer"])
def test_only_what_looks_ahead_is_given_the_step(lookahead):
    ours, regularizer = hypernetwork(), Remembers(1.0)
    regularizer.lookahead = lookahead
    theta = ours.shared_parameters()
    step = {theta["output.bias"]: torch.ones(8), ours.embeddings[0]: torch.ones(2)}
    penalty_ahead(regularizer, theta, step)
    if lookahead is None:
        assert regularizer.change is None
    else:
        assert regularizer.change.keys() == {"output.bias"}


def test_added_gradients_have_the_layout_of_their_parameter():
    transposed = nn.Parameter(torch.randn(3, 2).T)
    gradient = torch.randn(2, 3)
    for times in (1, 2):
        add_gradients({"weight": transposed}, {"weight": gradient})
        torch.testing.assert_close(transposed.grad, times * gradient)
        assert transposed.grad.stride() == transposed.stride()
