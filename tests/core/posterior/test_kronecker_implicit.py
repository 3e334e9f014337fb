"""Implicit steps of a Kronecker-factored penalty: the explicit solution, and stable."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, Adam, RAdam

from avalanche_hnet import KroneckerPosterior
from avalanche_hnet.core.posterior.kronecker_implicit import (
    kronecker_implicit_step,
    names_of_exact_steps,
)
from tests.support.kronecker import (
    LAYOUTS,
    block_masks,
    everything,
    flat,
    matrix_of,
    parameters_of,
    random_fisher,
)

pytestmark = pytest.mark.usefixtures("float64")


def posterior_of(kind, seed=0, masks=None, prior_variance=0.5, **options):
    posterior, layout = KroneckerPosterior(prior_variance, **options), LAYOUTS[kind][1]
    phi = parameters_of(kind, seed)
    for number in range(2):
        fisher = random_fisher({"layer": layout}, phi, seed + number)
        posterior.update(phi, fisher, 5, masks or everything(phi))
    return posterior


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from([*LAYOUTS]),
    rate=st.floats(1e-4, 10),
    factor=st.floats(0, 1e6),
    is_all_known=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_one_step_solves_the_explicit_system(kind, rate, factor, is_all_known, seed):
    torch.set_default_dtype(torch.float64)
    layout, phi = LAYOUTS[kind][1], parameters_of(kind, seed + 1)
    masks = None if is_all_known else block_masks(phi, layout, seed)
    posterior = posterior_of(kind, seed, masks)
    optimizer = SGD(phi.values(), lr=rate)
    penalty = posterior.ewc_term(factor)
    assert names_of_exact_steps(optimizer, phi, penalty) == {
        name for layer in penalty.layers for name in layer.names
    }
    before = {n: p.detach().clone() for n, p in phi.items()}
    kronecker_implicit_step(optimizer, phi, penalty)

    known = flat(layout, posterior.known)
    matrix = matrix_of(posterior._parts.layers["layer"].products[0])
    matrix = matrix + torch.eye(len(matrix)) / posterior.prior_variance
    matrix = factor * matrix * known[:, None] * known
    mean = flat(layout, posterior.mean)
    deviation = (flat(layout, before) - mean) * known
    solved = torch.linalg.solve(torch.eye(len(matrix)) + rate * matrix, deviation)
    expected = torch.where(known, mean + solved, flat(layout, before))
    torch.testing.assert_close(flat(layout, phi).detach(), expected, rtol=1e-8, atol=1e-9)
    assert torch.equal(flat(layout, phi)[~known], flat(layout, before)[~known])
    weight, centre = factor * posterior._parts.elements.precision["norm"], posterior.mean["norm"]
    moved = (before["norm"] + rate * weight * centre) / (1 + rate * weight)
    moved = torch.where(posterior.known["norm"], moved, before["norm"])
    torch.testing.assert_close(phi["norm"].detach(), moved)


def test_the_mean_is_a_fixed_point_bit_by_bit():
    posterior, phi = posterior_of("linear"), parameters_of("linear")
    kronecker_implicit_step(SGD(phi.values(), lr=0.1), phi, posterior.ewc_term(1e3))
    for name, p in phi.items():
        assert torch.equal(p.detach(), posterior.mean[name])


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.5, "nesterov": True}])
@pytest.mark.parametrize("strength", [0.1, 1.0, 1e4])
def test_comes_to_the_minimiser_for_every_strength(options, strength):
    """Of ½ |φ − t|² and the penalty; the gradient form diverges for the largest strength."""
    posterior, layout = posterior_of("linear"), LAYOUTS["linear"][1]
    target, phi = parameters_of("linear", 5), parameters_of("linear", 6)
    optimizer = SGD(phi.values(), lr=0.1, **options)
    penalty = posterior.ewc_term(strength)
    for _ in range(600):
        optimizer.zero_grad()
        sum(((p - target[n].detach()) ** 2).sum() / 2 for n, p in phi.items()).backward()
        optimizer.step()
        kronecker_implicit_step(optimizer, phi, penalty)
    matrix = matrix_of(posterior._parts.layers["layer"].products[0])
    matrix = strength * (matrix + torch.eye(len(matrix)) / posterior.prior_variance)
    right = flat(layout, target) + matrix @ flat(layout, posterior.mean)
    expected = torch.linalg.solve(torch.eye(len(matrix)) + matrix, right)
    torch.testing.assert_close(flat(layout, phi), expected, rtol=1e-5, atol=1e-6)


def test_infinite_strength_comes_to_the_mean():
    posterior = posterior_of("linear")
    phi = {n: nn.Parameter(p.float()) for n, p in parameters_of("linear", 1).items()}
    posterior.align(phi)
    kronecker_implicit_step(SGD(phi.values(), lr=1.0), phi, posterior.ewc_term(1e38))
    for name in ("layer.weight", "layer.bias"):
        torch.testing.assert_close(phi[name].detach(), posterior.mean[name], rtol=1e-5, atol=1e-5)


def test_half_precision_weights_are_moved():
    posterior = posterior_of("linear")
    phi = {n: nn.Parameter(p.bfloat16()) for n, p in parameters_of("linear", 1).items()}
    posterior.align(phi)
    kronecker_implicit_step(SGD(phi.values(), lr=1.0), phi, posterior.ewc_term(1e6))
    assert phi["layer.weight"].dtype == torch.bfloat16
    for name in ("layer.weight", "layer.bias"):
        mean = posterior.mean[name].bfloat16()
        torch.testing.assert_close(phi[name].detach(), mean, rtol=0.05, atol=0.05)


# Where there is no such step.


def without_steps():
    layout, phi = LAYOUTS["linear"][1], parameters_of("linear")
    plain = posterior_of("linear")
    yield "Adam", Adam(phi.values()), phi, plain.ewc_term()
    radam = RAdam(phi.values())
    for p in phi.values():
        radam.state[p] = {"step": torch.tensor(6.0), "exp_avg_sq": torch.ones_like(p)}
    yield "RAdam after its first steps", radam, phi, plain.ewc_term()
    yield "maximize", SGD(phi.values(), lr=0.1, maximize=True), phi, plain.ewc_term()
    groups = [
        {"params": [phi["layer.weight"]], "lr": 0.1},
        {"params": [phi["layer.bias"]], "lr": 0.2},
    ]
    yield "two rates", SGD(groups), phi, plain.ewc_term()
    yield "no bias", SGD([phi["layer.weight"]], lr=0.1), phi, plain.ewc_term()
    frozen = dict(phi) | {"layer.bias": nn.Parameter(torch.zeros(3), requires_grad=False)}
    yield "frozen", SGD(frozen.values(), lr=0.1), frozen, plain.ewc_term()
    sgd = SGD(phi.values(), lr=0.1)
    yield "two products", sgd, phi, posterior_of("linear", rank=None).ewc_term()
    odd = everything(phi)
    odd["layer.weight"][0, 1] = False
    elements = posterior_of("linear")
    elements.update(phi, random_fisher({"layer": layout}, phi, 3), 5, odd)
    yield "precisions by element", sgd, phi, elements.ewc_term()
    first, second = ({n: torch.zeros_like(m) for n, m in odd.items()} for _ in range(2))
    first["layer.weight"][0], first["layer.bias"][0], second["layer.bias"][1] = True, True, True
    corner = posterior_of("linear", masks=first)
    corner.update(phi, random_fisher({"layer": layout}, phi, 3), 5, second)
    yield "no block is known", sgd, phi, corner.ewc_term()
    yield "bias left out", sgd, phi, plain.ewc_term(skip={"layer.bias"})


@pytest.mark.parametrize("case", range(10))
def test_layers_without_an_exact_step_are_named_and_refused(case):
    name, optimizer, phi, penalty = list(without_steps())[case]
    assert names_of_exact_steps(optimizer, phi, penalty) == frozenset(), name
    before = {n: p.detach().clone() for n, p in phi.items()}
    with pytest.raises(ValueError, match=r"'layer.weight'.* have no implicit step"):
        kronecker_implicit_step(optimizer, phi, penalty)
    for name, p in phi.items():
        assert torch.equal(p.detach(), before[name])


def test_skipped_layers_are_left_alone():
    posterior, phi = posterior_of("linear"), parameters_of("linear", 1)
    optimizer, names = SGD(phi.values(), lr=0.1), {"layer.weight", "layer.bias"}
    before = {n: p.detach().clone() for n, p in phi.items()}
    kronecker_implicit_step(optimizer, phi, posterior.ewc_term(), skip=names)
    for name in names:
        assert torch.equal(phi[name].detach(), before[name])
    assert not torch.equal(phi["norm"].detach(), before["norm"])
    with pytest.raises(ValueError, match="have no implicit step"):
        kronecker_implicit_step(optimizer, phi, posterior.ewc_term(), skip={"layer.bias"})


def test_eigenbases_are_computed_once():
    posterior, phi = posterior_of("linear"), parameters_of("linear", 1)
    optimizer, basis = SGD(phi.values(), lr=0.1), posterior._parts.layers["layer"].eigenbasis
    for factor in (1.0, 2.0):
        (term,) = posterior.ewc_term(factor).layers
        kronecker_implicit_step(optimizer, phi, posterior.ewc_term(factor))
        assert term.layer.eigenbasis is basis
