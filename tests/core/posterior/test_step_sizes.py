"""Step sizes against what PyTorch's optimizers really do under a gradient that lasts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import (
    SGD,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    RAdam,
    RMSprop,
)

from avalanche_hnet.core.posterior.step_sizes import (
    is_known,
    names_of_known,
    shared_rate,
    step_size,
)

pytestmark = pytest.mark.usefixtures("float64")

RATE = st.floats(1e-4, 1.0)
EPS = st.sampled_from([1e-8, 1e-3])
BETA = st.floats(0.0, 0.95)
BETAS = st.tuples(BETA, st.floats(0.5, 0.99))
MOMENTUM = st.floats(0.0, 0.95)


def options_of(optimizer, **strategies):
    return st.tuples(st.just(optimizer), st.fixed_dictionaries({"lr": RATE, **strategies}))


CASES = st.one_of(
    options_of(SGD, momentum=MOMENTUM, dampening=st.floats(0, 0.9)),
    options_of(SGD, momentum=st.floats(0.1, 0.95), nesterov=st.just(True)),
    options_of(Adam, betas=BETAS, eps=EPS, amsgrad=st.booleans()),
    options_of(AdamW, betas=BETAS, eps=EPS, amsgrad=st.booleans(), weight_decay=st.just(0.0)),
    options_of(NAdam, betas=BETAS, eps=EPS),
    options_of(RAdam, betas=BETAS, eps=EPS),
    options_of(Adamax, betas=BETAS, eps=EPS),
    # The second moment must have settled, too: momentum remembers steps by earlier ones.
    options_of(RMSprop, momentum=MOMENTUM, alpha=st.floats(0.5, 0.95), eps=EPS),
    options_of(
        Adagrad,
        lr_decay=st.sampled_from([0.0, 0.1]),
        eps=EPS,
        initial_accumulator_value=st.sampled_from([0.0, 0.5]),
    ),
)


def eta(optimizer, p):
    size = step_size(optimizer, optimizer.param_groups[0], p)
    return size.rate / (torch.ones_like(p) if size.moment is None else size.scale(size.moment))


@settings(max_examples=150, deadline=None)
@given(case=CASES, seed=st.integers(0, 100))
def test_a_lasting_gradient_moves_by_the_step_size(case, seed):
    torch.set_default_dtype(torch.float64)
    kind, options = case
    generator = torch.Generator().manual_seed(seed)
    gradient = torch.randn(4, generator=generator)
    p = torch.nn.Parameter(torch.zeros(4))
    optimizer = kind([p], **options)
    for _ in range(600):  # until momentum has accumulated
        p.grad, before = gradient.clone(), p.detach().clone()
        optimizer.step()
    # NAdam's momentum still grows, by less than a thousandth a step.
    tolerance = 1e-3 if kind is NAdam else 1e-8
    torch.testing.assert_close(
        before - p.detach(), eta(optimizer, p) * gradient, rtol=tolerance, atol=0
    )


def test_centred_second_moments_are_not_known_since_a_lasting_gradient_has_none():
    """PyTorch's own step then divides by zero, or by the root of a negative rounding error."""
    p = torch.nn.Parameter(torch.zeros(4))
    optimizer = RMSprop([p], lr=0.1, alpha=0.9, eps=0.0, centered=True)
    assert not is_known(optimizer)
    for _ in range(2000):
        p.grad = torch.tensor([0.3, 0.7, 1.1, -1.3])
        optimizer.step()
    assert not (p.abs() < 1e6).all()


@pytest.mark.parametrize("kind", [Adam, AdamW, RMSprop, Adagrad, Adamax, NAdam, RAdam])
def test_an_element_without_gradient_so_far_moves_at_the_rate_alone(kind):
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = kind([p], lr=0.1)
    for _ in range(10):
        p.grad = torch.tensor([0.0, 2.0])
        optimizer.step()
    sizes = eta(optimizer, p)
    assert 0 < sizes[0] <= 0.1
    assert 0 < sizes[1] < 0.2


@pytest.mark.parametrize("kind", [Adam, AdamW, RMSprop, Adagrad, Adamax, NAdam, RAdam])
def test_no_size_before_the_first_step(kind):
    moved, unused = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = kind([moved, unused], lr=0.1)
    moved.grad = torch.ones(2)
    optimizer.step()
    group = optimizer.param_groups[0]
    assert step_size(optimizer, group, moved) is not None
    assert step_size(optimizer, group, unused) is None


def test_the_state_is_left_alone():
    for kind in (Adam, RMSprop, Adagrad, Adamax, NAdam, RAdam):
        p = torch.nn.Parameter(torch.ones(3))
        optimizer = kind([p], lr=0.1)
        for _ in range(10):
            p.grad = torch.tensor([1.0, -2.0, 3.0])
            optimizer.step()
        before = {k: v.clone() for k, v in optimizer.state[p].items() if v is not None}
        size = step_size(optimizer, optimizer.param_groups[0], p)
        if size.moment is not None:
            size.scale(size.moment).fill_(7)  # it may be overwritten
        for key, value in before.items():
            assert torch.equal(optimizer.state[p][key], value), (kind, key)


class Other(Adam):
    """May step in another way."""


@pytest.mark.parametrize(
    ("make", "known"),
    [
        (lambda p: SGD(p, 0.1), True),
        (lambda p: SGD(p, 0.1, momentum=0.9), True),
        (lambda p: SGD(p, 0.1, maximize=True), False),
        (lambda p: SGD(p, 0.1, momentum=1.0), False),
        (lambda p: RMSprop(p, 0.1, momentum=1.0), False),
        (lambda p: RMSprop(p, 0.1, centered=True), False),
        (lambda p: Adam(p, 0.1, maximize=True), False),
        (lambda p: Other(p, 0.1), False),
        (lambda p: torch.optim.LBFGS(p), False),
        (lambda p: torch.optim.Rprop(p), False),
        (lambda p: torch.optim.ASGD(p), False),
        (lambda p: torch.optim.Adadelta(p), False),
    ],
)
def test_which_optimizers_are_known(make, known):
    assert is_known(make([torch.nn.Parameter(torch.zeros(2, 2))])) is known


def test_maximize_in_one_group_only():
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(2))]},
        {"params": [torch.nn.Parameter(torch.zeros(2))], "maximize": True},
    ]
    assert not is_known(Adam(groups, lr=0.1))


@pytest.mark.parametrize("beta2", [0.5, 0.9, 0.999])
def test_radam_has_one_rate_as_long_as_it_steps_by_it(beta2):
    """A gradient that is the same from the start moves by the rate, or by another number."""
    p = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = RAdam([p], lr=0.1, betas=(0.9, beta2))
    (group,) = optimizer.param_groups
    n_alike = 0
    for _ in range(12):
        expected, before = shared_rate(optimizer, group, p, n_more=1), p.detach().clone()
        p.grad = torch.tensor([1.0, -3.0], dtype=torch.float64)
        optimizer.step()
        is_alike = torch.allclose(before - p.detach(), 0.1 * p.grad, rtol=1e-9)
        assert expected == shared_rate(optimizer, group, p) == (0.1 if is_alike else None)
        n_alike += is_alike
    assert n_alike > 0


def test_other_optimizers_have_one_rate_always_or_never():
    p = torch.nn.Parameter(torch.zeros(2))
    for optimizer, expected in (
        (SGD([p], 0.1, momentum=0.5), 0.2),
        (SGD([p], 0.1, maximize=True), None),
        (RAdam([p], 0.1, maximize=True), None),
        (Adam([p], 0.1), None),
    ):
        assert shared_rate(optimizer, optimizer.param_groups[0], p, n_more=1) == expected


def test_names():
    assert names_of_known() == "Adagrad, Adam, AdamW, Adamax, NAdam, RAdam, RMSprop, SGD"
