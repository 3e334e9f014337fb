import copy
import inspect
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from avalanche_hnet.core.regularizers.lookahead import fresh_optimizer, optimizer_step, sgd_step
from tests.support.optimizers import (
    CASES,
    CLASSES,
    LR,
    UserOptimizer,
    assert_same,
    compute_gradients,
    loss_of,
    parameters,
    real_step,
    train,
)

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("error"),
]


DIFFERENTIABLE = [
    name
    for name, cls in CLASSES.items()
    if "differentiable" in cls([nn.Parameter(torch.ones(1, 1))]).defaults
]


DIFFERENTIABLE_CASES = [case for case in CASES if case.values[0] in DIFFERENTIABLE]


def two_groups(optimizer_class, params, **options):
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": LR / 3}]
    return optimizer_class(groups, lr=LR, **options)


def trace(value):
    """Everything inside, for comparison: identities and versions, and the values themselves."""
    if isinstance(value, torch.Tensor):
        grad = trace(value.grad) if value.is_leaf and value.grad is not None else None
        flags = value._version, value.requires_grad, value.grad_fn
        return id(value), value.data_ptr(), *flags, value.tolist(), grad
    if isinstance(value, torch.optim.Optimizer):
        return id(value), trace(vars(value))
    if isinstance(value, dict):
        return id(value), type(value), [(trace(k), trace(v)) for k, v in value.items()]
    if isinstance(value, list | tuple):
        return id(value), [trace(item) for item in value]
    return id(value), repr(value)


@pytest.mark.parametrize("steps_before", [0, 1, 4])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_is_what_the_real_step_does(name, options, steps_before):
    optimizer = two_groups(CLASSES[name], parameters(), **options)
    params = train(optimizer, steps_before)
    changes = optimizer_step(optimizer)
    expected = real_step(optimizer, params)
    assert_same(changes, expected, params[:2])
    assert all(expected[p].abs().max() > 1e-5 for p in params[:2])
    assert not any(change.requires_grad for change in changes.values())


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("steps_before", [0, 1, 4])
def test_is_what_the_real_step_of_a_user_s_class_does(noise, steps_before):
    optimizer = UserOptimizer(parameters(), LR, noise)
    optimizer.all_parameters[0].frozen = True
    params = train(optimizer, steps_before)
    before, rng = trace(optimizer), torch.get_rng_state()
    changes = optimizer_step(optimizer)
    assert trace(optimizer) == before
    assert torch.equal(torch.get_rng_state(), rng)
    assert_same(changes, real_step(optimizer, params), params[:2])


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_leaves_everything_as_it_was(name, options, steps_before, differentiable):
    optimizer = two_groups(CLASSES[name], parameters(), **options)
    params = train(optimizer, steps_before)
    before = trace(optimizer)
    if differentiable and name in DIFFERENTIABLE:
        graph = torch.autograd.grad(loss_of(params), params[:2], create_graph=True)
        changes = optimizer_step(
            optimizer, dict(zip(params, graph, strict=False)), differentiable=True
        )
        sum(change.sum() for change in changes.values()).backward(inputs=list(graph))
        assert all(g._backward_hooks is None for g in graph)
    else:
        optimizer_step(optimizer)
    assert trace(optimizer) == before


def test_given_gradients_stand_in_for_those_of_the_parameters():
    optimizer = torch.optim.Adam(parameters(), LR)
    params = train(optimizer, 2)
    compute_gradients(params)
    gradients = {params[2]: torch.randn(2, 2), params[0]: torch.randn(3, 2)}
    changes = optimizer_step(optimizer, gradients)
    for p in params:
        p.grad = gradients.get(p)
    assert_same(changes, real_step(optimizer, params), [params[0], params[2]])


def test_no_gradient_no_step():
    assert optimizer_step(torch.optim.Adam(parameters())) == {}
    assert optimizer_step(torch.optim.Adam(parameters()), {}, differentiable=True) == {}
    assert sgd_step(torch.optim.Adam(parameters())) == {}


@pytest.mark.parametrize("name", CLASSES)
def test_under_a_scheduler(name):
    optimizer = two_groups(CLASSES[name], parameters())
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    params = train(optimizer, 2)
    scheduler.step()
    called = optimizer._opt_called
    optimizer._opt_called = False
    before = trace(optimizer)
    changes = optimizer_step(optimizer)
    assert trace(optimizer) == before
    optimizer._opt_called = called
    assert_same(changes, real_step(optimizer, params), params[:2])


@pytest.mark.parametrize("name", ["SGD", "Adam"])
@pytest.mark.parametrize("fused", [False, True])
def test_learning_rate_in_a_tensor(name, fused):
    lr = torch.tensor(LR)
    optimizer = CLASSES[name](parameters(), lr=lr, fused=fused)
    params = train(optimizer, 1)
    lr.fill_(LR / 4)
    changes, sgd = optimizer_step(optimizer), sgd_step(optimizer)
    assert sgd[params[0]].equal(-LR / 4 * params[0].grad)
    fresh = fresh_optimizer(optimizer, parameters())
    assert_same(changes, real_step(optimizer, params), params[:2])
    lr.fill_(1)
    assert fresh.param_groups[0]["lr"].item() == LR / 4


def test_state_that_avalanche_seeds_is_a_first_step():
    optimizer = torch.optim.Adam(parameters(), LR)
    params = train(optimizer, 0)
    optimizer.state.update({p: {} for p in params})
    changes = optimizer_step(optimizer)
    assert all(state == {} for state in optimizer.state.values())
    assert_same(changes, real_step(optimizer, params), params[:2])


def test_hooks_are_not_called():
    calls = []
    optimizer = UserOptimizer(parameters(), LR)
    train(optimizer, 1)
    plain = torch.optim.SGD(optimizer.all_parameters, LR)
    everywhere = register_optimizer_step_post_hook(lambda *_: calls.append("all"))
    try:
        for each in (plain, optimizer, optimizer.inner):
            each.register_step_pre_hook(lambda *_: calls.append("before"))
            each.register_step_post_hook(lambda *_: calls.append("after"))
        optimizer_step(plain)
        assert calls == []
        plain.step()
        assert calls == ["before", "after", "all"]
    finally:
        everywhere.remove()
    calls.clear()
    optimizer_step(optimizer)
    assert calls == []
    optimizer.step()
    assert {"before", "after"} == set(calls)


def test_an_unpickled_optimizer_works_too():
    optimizer = copy.deepcopy(torch.optim.Adam(parameters(), LR))
    params = train(optimizer, 2)
    assert_same(optimizer_step(optimizer), real_step(optimizer, params), params[:2])


def test_sparse_gradients():
    weight = nn.Parameter(torch.randn(5, 2))
    optimizer = torch.optim.SparseAdam([weight], LR)
    weight.grad = torch.ones(5, 2)
    with pytest.raises(RuntimeError, match="SparseAdam does not support dense gradients"):
        optimizer_step(optimizer)
    weight.grad = torch.sparse_coo_tensor([[1, 3]], torch.ones(2, 2), (5, 2), check_invariants=True)
    assert_same(optimizer_step(optimizer), real_step(optimizer, [weight]), [weight])


@settings(deadline=None)
@given(
    lr=st.floats(0, 10),
    momentum=st.floats(0, 2),
    dampening=st.floats(0, 1),
    weight_decay=st.floats(0, 2),
    nesterov=st.booleans(),
    maximize=st.booleans(),
    foreach=st.booleans(),
    steps_before=st.integers(0, 3),
)
def test_sgd_with_any_options(
    lr, momentum, dampening, weight_decay, nesterov, maximize, foreach, steps_before
):
    if nesterov:
        dampening, momentum = 0, momentum + 0.1
    p = nn.Parameter(torch.randn(4))
    optimizer = torch.optim.SGD(
        [p], lr, momentum, dampening, weight_decay, nesterov, maximize=maximize, foreach=foreach
    )
    for _ in range(steps_before):
        p.grad = torch.randn(4)
        optimizer.step()
    gradient = torch.randn(4, requires_grad=True)
    change = optimizer_step(optimizer, {p: gradient})[p]
    tracked = optimizer_step(optimizer, {p: gradient}, differentiable=True)[p]
    (slope,) = torch.autograd.grad(tracked.sum(), gradient)
    p.grad = gradient.detach()
    expected = real_step(optimizer, [p])[p]
    scale = 1e-12 * (1 + p.detach().abs().max().item() + expected.abs().max().item())
    torch.testing.assert_close(change, expected, rtol=0, atol=scale)
    torch.testing.assert_close(tracked, expected, rtol=0, atol=scale)
    first = not steps_before or not momentum
    by_hand = 1 if first else 1 - dampening
    if nesterov:
        by_hand = 1 + momentum * by_hand
    by_hand *= lr if maximize else -lr
    torch.testing.assert_close(slope, torch.full((4,), by_hand), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps_before", [0, 1, 4])
@pytest.mark.parametrize(("name", "options"), DIFFERENTIABLE_CASES)
def test_derivative_is_that_of_finite_differences(name, options, steps_before):
    """Through the loss's gradient g(p) and the parameters themselves."""
    if "eps" in inspect.signature(CLASSES[name]).parameters:
        options = {"eps": 1e-2} | options  # where Adam is not merely a sign
    optimizer = two_groups(CLASSES[name], parameters(), **options)
    params = train(optimizer, steps_before)
    weights = [torch.randn_like(p) for p in params]

    def total(differentiable):
        gradients = torch.autograd.grad(loss_of(params), params[:2], create_graph=differentiable)
        changes = optimizer_step(
            optimizer, dict(zip(params, gradients, strict=False)), differentiable=differentiable
        )
        return changes, sum(
            (changes[p] * w).sum() for p, w in zip(params[:2], weights, strict=False)
        )

    changes, value = total(differentiable=True)
    derivatives = torch.autograd.grad(value, params[:2])
    # PyTorch's fused state counts steps in float32, which its differentiable Adam computes with.
    tolerance = 1e-6 if options.get("fused") else 1e-12
    detached = {p: change.detach() for p, change in changes.items()}
    assert_same(detached, optimizer_step(optimizer), params[:2], tolerance)
    largest = 0.0
    for p, derivative in zip(params[:2], derivatives, strict=True):
        for i in product(*map(range, p.shape)):
            h, sides = 1e-5, []
            with torch.no_grad():
                for side in (h, -h):
                    p[i] += side
                    with torch.enable_grad():
                        sides.append(total(differentiable=False)[1].item())
                    p[i] -= side
            expected = (sides[0] - sides[1]) / (2 * h)
            assert derivative[i].item() == pytest.approx(expected, rel=1e-5, abs=1e-7)
            largest = max(largest, abs(expected))
    assert largest > 1e-4 or name == "Rprop"  # its step depends on signs only


def test_differentiable_with_nothing_to_differentiate():
    p, g = torch.randn(3), torch.randn(3)
    optimizer = torch.optim.SGD([p], LR)
    change = optimizer_step(optimizer, {p: g}, differentiable=True)[p]
    assert change.equal(optimizer_step(optimizer, {p: g})[p])
    assert not change.requires_grad


def test_capturable_does_not_matter_for_derivatives():
    params = parameters()
    compute_gradients(params)
    plain, capturable = (
        optimizer_step(torch.optim.Adam(params, LR, capturable=c), differentiable=True)
        for c in (False, True)  # of which only the first could step on a CPU
    )
    assert_same(capturable, plain, params[:2])


@pytest.mark.parametrize("differentiable", [True, False])
def test_autograd_mode_outside_does_not_matter(differentiable):
    optimizer = torch.optim.Adam(parameters(), LR, weight_decay=0.1)
    params = train(optimizer, 1)
    for p in params[:2]:
        p.grad.requires_grad_()
    with torch.no_grad():
        changes = optimizer_step(optimizer, differentiable=differentiable)
        assert not torch.is_grad_enabled()
    assert all(c.requires_grad is differentiable for c in changes.values())


@pytest.mark.parametrize("p_is_zero", [True, False])
@pytest.mark.parametrize("vanishing", [0.0, 1e-170])
@pytest.mark.parametrize(("name", "options"), DIFFERENTIABLE_CASES)
def test_vanishing_gradients_have_finite_derivatives(name, options, vanishing, p_is_zero):
    p = nn.Parameter(torch.randn(1, 4))
    with torch.no_grad():
        p[0, 1] *= not p_is_zero
    g = torch.tensor([[1.0, vanishing, -2.0, 0.5]], requires_grad=True)
    optimizer = CLASSES[name]([p], lr=LR, **options)
    for _ in range(3):
        change = optimizer_step(optimizer, {p: g}, differentiable=True)[p]
        # Without the third element's: a derivative that comes from above may be zero, too.
        derivatives = torch.autograd.grad((change * torch.tensor([1, 1, 0, 1])).sum(), [g, p])
        assert all(d.isfinite().all() for d in derivatives)
        p.grad = g.detach()
        optimizer.step()


def test_zero_gradients_have_their_derivative_where_there_is_one():
    p = nn.Parameter(torch.randn(3))
    g = torch.zeros(3, requires_grad=True)
    change = optimizer_step(torch.optim.SGD([p], LR), {p: g}, differentiable=True)[p]
    assert torch.autograd.grad(change.sum(), g)[0].equal(torch.full((3,), -LR))

    adam = torch.optim.Adam([p], LR)
    p.grad = torch.ones(3)
    adam.step()
    (slope,) = torch.autograd.grad(optimizer_step(adam, {p: g}, differentiable=True)[p].sum(), g)
    h = 1e-6
    up, down = (optimizer_step(adam, {p: g.detach() + d})[p] for d in (h, -h))
    torch.testing.assert_close(slope, (up - down) / (2 * h), rtol=1e-5, atol=1e-8)


def test_a_gradient_that_is_not_finite_stays_so():
    p = nn.Parameter(torch.randn(3))
    g = torch.tensor([1.0, float("nan"), 0.0], requires_grad=True)
    change = optimizer_step(torch.optim.Adam([p]), {p: g}, differentiable=True)[p]
    (slope,) = torch.autograd.grad(change.sum(), g)
    assert slope.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in DIFFERENTIABLE])
def test_differentiable_is_refused_without_the_option(name):
    optimizer = CLASSES[name](parameters())
    params = train(optimizer, 1)
    gradients = torch.autograd.grad(loss_of(params), params[:2], create_graph=True)
    with pytest.raises(ValueError, match=f"differentiable=True .* but {name} has no"):
        optimizer_step(optimizer, dict(zip(params, gradients, strict=False)), differentiable=True)


def test_differentiable_is_refused_where_the_step_does_not_follow_its_option():
    class NoGradAdam(torch.optim.Adam):
        @torch.no_grad()
        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                p -= p.grad

    p = nn.Parameter(torch.randn(3))
    gradient = torch.randn(3, requires_grad=True)
    with pytest.raises(ValueError, match=r"differentiable=True .* but NoGradAdam has no"):
        optimizer_step(NoGradAdam([p]), {p: gradient}, differentiable=True)


def test_closures_are_refused():
    params = parameters()
    compute_gradients(params)
    with pytest.raises(ValueError, match="optimizer LBFGS needs a closure"):
        optimizer_step(torch.optim.LBFGS(params))


@pytest.mark.parametrize("function", [optimizer_step, sgd_step])
def test_gradients_must_fit(function):
    a, b = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([a], LR)
    with pytest.raises(ValueError, match=r"gradients .*shape \(3, 2\).* of shape \(2, 3\)"):
        function(optimizer, {a: torch.ones(3, 2)})
    with pytest.raises(ValueError, match=r"gradients .* not in the optimizer.*\(4,\)"):
        function(optimizer, {a: torch.ones(2, 3), b: torch.ones(4)})


@pytest.mark.parametrize("maximize", [False, True])
def test_sgd_step(maximize):
    optimizer = two_groups(torch.optim.Adam, parameters(), maximize=maximize)
    params = train(optimizer, 1)
    plain = torch.optim.SGD(optimizer.param_groups, maximize=maximize)
    plain.param_groups = [{**plain.defaults, **g} for g in plain.param_groups]
    changes = sgd_step(optimizer)
    sign = 1 if maximize else -1
    expected = {params[0]: sign * LR * params[0].grad, params[1]: sign * LR / 3 * params[1].grad}
    assert_same(changes, expected, params[:2])

    graph = dict(
        zip(
            params,
            torch.autograd.grad(loss_of(params), params[:2], create_graph=True),
            strict=False,
        )
    )
    assert not any(c.requires_grad for c in sgd_step(optimizer, graph).values())
    changes = sgd_step(optimizer, graph, differentiable=True)
    slopes = torch.autograd.grad(sum(c.sum() for c in changes.values()), list(graph.values()))
    assert slopes[0].equal(torch.full((3, 2), sign * LR))
    assert slopes[1].equal(torch.full((1, 4), sign * LR / 3))


def test_sgd_step_needs_a_learning_rate():
    class NoRate(torch.optim.Optimizer):
        def step(self):
            """Nothing."""

    with pytest.raises(ValueError, match="'lr', but NoRate's have none"):
        sgd_step(NoRate(parameters(), {}))
