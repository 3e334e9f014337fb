"""Implicit steps: to the closed-form minimiser, and stable for every strength."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import SGD, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop

from avalanche_hnet.core.common.quadratic import Quadratic
from avalanche_hnet.core.posterior.implicit import _move, _move_together, _Pull, implicit_step
from avalanche_hnet.core.posterior.step_sizes import StepSize

pytestmark = pytest.mark.usefixtures("float64")

# Learning rates shrink, since these optimizers walk about a minimum at the size of their rate.
OPTIMIZERS = {
    "SGD": (SGD, {"lr": 0.1}, 1.0),
    "SGD, momentum": (SGD, {"lr": 0.05, "momentum": 0.9}, 1.0),
    "SGD, dampening": (SGD, {"lr": 0.2, "momentum": 0.8, "dampening": 0.5}, 1.0),
    "SGD, nesterov": (SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}, 1.0),
    "Adam": (Adam, {"lr": 0.05}, 0.997),
    "Adam, amsgrad": (Adam, {"lr": 0.05, "amsgrad": True}, 0.9995),
    "AdamW": (AdamW, {"lr": 0.05, "weight_decay": 0.0}, 0.997),
    "NAdam": (NAdam, {"lr": 0.05}, 0.997),
    "RAdam": (RAdam, {"lr": 0.05}, 0.997),
    "Adamax": (Adamax, {"lr": 0.05}, 0.997),
    "RMSprop": (RMSprop, {"lr": 0.05}, 0.997),
    "RMSprop, momentum": (RMSprop, {"lr": 0.02, "momentum": 0.5}, 0.997),
    "Adagrad": (Adagrad, {"lr": 0.5}, 1.0),
}


def problem(strength, seed=0, n=6):
    """½ h (φ − t)² and ½ s (φ − c)², s of all sizes, one of them zero."""
    generator = torch.Generator().manual_seed(seed)
    h, t, c = (torch.randn(n, generator=generator) for _ in range(3))
    h = h.abs() + 0.5
    s = strength * torch.rand(n, generator=generator)
    s[0] = 0
    return h, t, s, c


def train(kind, options, decay, strength, *, implicit=True, n_steps=4000, seed=0):
    h, t, s, c = problem(strength, seed)
    p = torch.nn.Parameter(torch.zeros_like(t))
    optimizer = kind([p], **options)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, decay)
    penalty = Quadratic({"p": s}, {"p": c})
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss = (h * (p - t) ** 2).sum() / 2
        if not implicit:
            loss = loss + penalty({"p": p})
        loss.backward()
        optimizer.step()
        if implicit:
            implicit_step(optimizer, {"p": p}, penalty)
        schedule.step()
    return p.detach(), (h * t + s * c) / (h + s)


@pytest.mark.parametrize("strength", [0.0, 1.0, 1e2, 1e6])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_comes_to_the_closed_form_minimiser(name, strength):
    p, expected = train(*OPTIMIZERS[name], strength)
    torch.testing.assert_close(p, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_has_the_solution_of_the_gradient_form(name):
    implicit, _ = train(*OPTIMIZERS[name], 1.0)
    gradient, _ = train(*OPTIMIZERS[name], 1.0, implicit=False)
    torch.testing.assert_close(implicit, gradient, rtol=1e-4, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from([*OPTIMIZERS]), strength=st.floats(0, 1e12), seed=st.integers(0, 1000))
def test_is_stable_for_every_strength(name, strength, seed):
    """Where the gradient form of SGD is off by powers of ten after a few steps."""
    torch.set_default_dtype(torch.float64)
    kind, options, _ = OPTIMIZERS[name]
    p, _ = train(kind, options, 1.0, strength, n_steps=60, seed=seed)
    _, t, _, c = problem(strength, seed)
    furthest = torch.stack([t.abs(), c.abs()]).max(0).values
    assert (p.abs() <= 3 * furthest + 5).all()


def test_one_step_is_the_equation():
    h, t, s, c = problem(3.0)
    p = torch.nn.Parameter(t.clone())
    optimizer = SGD([p], lr=0.1)
    p.grad = h.clone()
    optimizer.step()
    moved = p.detach().clone()
    implicit_step(optimizer, {"p": p}, Quadratic({"p": s}, {"p": c}))
    torch.testing.assert_close(p.detach(), (moved + 0.1 * s * c) / (1 + 0.1 * s))


def test_the_centre_is_a_fixed_point_bit_by_bit():
    _, _, s, c = problem(1e3)
    p = torch.nn.Parameter(c.clone())
    optimizer = Adam([p], lr=0.1)
    p.grad = torch.ones_like(p)
    optimizer.step()
    with torch.no_grad():
        p.copy_(c)
    implicit_step(optimizer, {"p": p}, Quadratic({"p": s}, {"p": c}))
    assert torch.equal(p.detach(), c)


def test_groups_with_rates_of_their_own():
    parameters = {n: torch.nn.Parameter(torch.ones(2)) for n in "abcd"}
    parameters["c"].requires_grad_(False)
    optimizer = SGD(
        [
            {"params": [parameters["a"]], "lr": 0.1},
            {"params": [parameters["b"], parameters["c"]], "lr": 0.2, "momentum": 0.5},
        ]
    )
    weights = {n: torch.full((2,), 2.0) for n in parameters}
    penalty = Quadratic(weights, {n: torch.zeros(2) for n in parameters})
    implicit_step(optimizer, parameters, penalty)
    for name, eta in (("a", 0.1), ("b", 0.4)):
        torch.testing.assert_close(parameters[name].detach(), torch.full((2,), 1 / (1 + 2 * eta)))
    assert (parameters["c"] == 1).all()  # frozen
    assert (parameters["d"] == 1).all()  # not the optimizer's
    implicit_step(optimizer, parameters, penalty, skip=("a", "b"))
    torch.testing.assert_close(parameters["a"].detach(), torch.full((2,), 1 / 1.2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters(dtype):
    p = torch.nn.Parameter(torch.ones(3, dtype=dtype))
    optimizer = SGD([p], lr=0.5)
    s, c = torch.tensor([0.0, 1.0, 1e6]), torch.tensor([0.0, 0.5, 0.25])
    implicit_step(optimizer, {"p": p}, Quadratic({"p": s}, {"p": c}))
    assert p.dtype == dtype
    expected = ((1 + 0.5 * s * c) / (1 + 0.5 * s)).to(dtype)
    torch.testing.assert_close(p.detach(), expected)


def pulls(sizes, eps=0.1):
    made = []
    for size in sizes:
        p = torch.nn.Parameter(torch.randn(size))
        for moment in (None, torch.rand(size)):
            q = torch.nn.Parameter(p.detach().clone())
            made.append(
                _Pull(q, torch.rand_like(q), torch.randn_like(q), StepSize(0.3, moment, eps))
            )
    return made


def moved(pull):
    p, weight, centre, size = pull
    eta = 0.3 / (1 if size.moment is None else size.moment.sqrt() + size.eps)
    return ((p + eta * weight * centre) / (1 + eta * weight)).detach()


def test_many_at_once_move_as_one_by_one():
    made = pulls([(1,), (2, 3), (4,)])
    expected = [moved(pull) for pull in made]
    with torch.no_grad():
        _move_together(made)
    torch.testing.assert_close([p.detach() for p, *_ in made], expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_large_tensors_move_part_by_part(layout):
    for pull in pulls([(70, 10, 10, 10), ()]):
        p = pull.parameter
        if p.dim() == 4:
            p.data = p.data.to(memory_format=layout)
        expected = moved(pull)
        with torch.no_grad():
            _move(pull)
        torch.testing.assert_close(p.detach(), expected)
