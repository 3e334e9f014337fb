"""The Kronecker-factored posterior against explicit matrices over all of a layer's weights."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from avalanche_hnet import Gaussian, GaussianPosterior, KroneckerPosterior
from avalanche_hnet.core.fisher.kronecker_layer import KroneckerFisher
from avalanche_hnet.core.posterior.protocol import Posterior, Term
from tests.support.kronecker import (
    LAYOUTS,
    assert_same_state,
    block_masks,
    everything,
    flat,
    grown,
    matrix_of,
    parameters_of,
    product_of,
    random_fisher,
)

pytestmark = pytest.mark.usefixtures("float64")


class Explicit:
    """One layer's data precision as a full matrix, and the known mask, by the equations."""

    def __init__(self, layout, parameters):
        self.layout = layout
        size = flat(layout, parameters).numel()
        self.precision, self.known = torch.zeros(size, size), torch.zeros(size, dtype=torch.bool)
        self.mean = torch.zeros(size)

    def update(self, parameters, factor, n_samples, active, gamma, is_block=True):
        mask = flat(self.layout, active)
        data = matrix_of((factor.inputs, factor.outputs))
        if not is_block:
            data = data.diag().diag()
        self.precision = gamma * self.precision + n_samples * data * mask[:, None] * mask
        self.known |= mask
        self.mean = torch.where(self.known, flat(self.layout, parameters).detach(), self.mean)

    def penalty(self, parameters, prior_variance):
        d = (flat(self.layout, parameters) - self.mean) * self.known
        return (d @ self.precision @ d + d @ d / prior_variance) / 2


def values_and_gradients(term, parameters, factor=1.0):
    parameters = {n: p.detach().clone().requires_grad_() for n, p in parameters.items()}
    value = term(parameters)
    if value.requires_grad:  # or nothing is known
        (factor * value).backward()
    return value.detach(), {n: p.grad for n, p in parameters.items() if p.grad is not None}


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from([*LAYOUTS]),
    gammas=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    prior_variance=st.floats(0.01, 100),
    are_blocks=st.lists(st.booleans(), min_size=4, max_size=4),
    rank=st.sampled_from([None, 7]),
    seed=st.integers(0, 10**6),
)
def test_penalty_and_gradient_equal_explicit_matrices(
    kind, gammas, prior_variance, are_blocks, rank, seed
):
    torch.set_default_dtype(torch.float64)
    _, layout = LAYOUTS[kind]
    posterior = KroneckerPosterior(prior_variance, rank=rank)
    elements = GaussianPosterior(prior_variance)
    explicit = Explicit(layout, parameters_of(kind))
    for number, gamma in enumerate(gammas):
        phi = parameters_of(kind, seed + number)
        posterior.align(phi)
        elements.align(phi)
        fisher = random_fisher({"layer": layout}, phi, seed + number)
        active = block_masks(phi, layout, seed + number)
        factor = fisher.layers["layer"]
        if not are_blocks[number]:  # one element more
            active[layout.weight].view(-1)[1:3] ^= True
        mask = layout.matrices(active)
        is_block = torch.equal(mask, mask.any(2)[:, :, None] & mask.any(1)[:, None, :])
        posterior.update(phi, fisher, 5, active, gamma)
        elements.update(phi, fisher.diagonal, 5, active, gamma)
        explicit.update(phi, factor, 5, active, gamma, is_block)

        phi = parameters_of(kind, seed + 100 + number)
        found = values_and_gradients(posterior.ewc_term(2.0), phi, 3.0)
        rest = GaussianPosterior.ewc_term(elements, 2.0, skip=layout.names)
        expected = values_and_gradients(
            lambda p, rest=rest: 2 * explicit.penalty(p, prior_variance) + rest(p),
            phi,
            3.0,
        )
        torch.testing.assert_close(found[0], expected[0], rtol=1e-10, atol=1e-12)
        for name, gradient in expected[1].items():
            own = found[1].get(name, torch.zeros_like(gradient))
            torch.testing.assert_close(own, gradient, rtol=1e-9, atol=1e-10)
        with torch.no_grad():
            torch.testing.assert_close(posterior.ewc_term(2.0)(phi), expected[0])
        for name, known in elements.known.items():
            if name not in layout.names:
                assert torch.equal(posterior.known[name], known)
        prior = posterior.prior_term(active, 0.3)(phi)
        by_hand = 0.0
        for name, p in phi.items():
            new = active[name] & ~posterior.known[name]
            by_hand += 0.15 / prior_variance * float((p.detach()[new] ** 2).sum())
        assert prior.item() == pytest.approx(by_hand)


def test_both_are_posteriors_and_their_terms_are_terms():
    for kind in (GaussianPosterior, KroneckerPosterior):
        posterior = kind(0.5)
        assert isinstance(posterior, Posterior)
        posterior.align(parameters_of("linear"))
        for term in (posterior.ewc_term(), posterior.prior_term({})):
            assert term.names == []
            assert term({}) == 0
            assert all(hasattr(term, name) for name in vars(Term) if not name.startswith("_"))
    assert not isinstance({}, Posterior)


def test_without_layers_it_is_the_gaussian_posterior():
    phi, later = parameters_of("linear"), parameters_of("linear", 1)
    diagonal = {n: p.detach() ** 2 for n, p in phi.items()}
    active = block_masks(phi, LAYOUTS["linear"][1], 3)
    gaussian, kronecker = GaussianPosterior(0.3, "initial"), KroneckerPosterior(0.3, "initial")
    for posterior, fisher in ((gaussian, diagonal), (kronecker, KroneckerFisher({}, diagonal))):
        posterior.align(phi)
        posterior.update(phi, fisher, 9, active, 0.5)
        posterior.update(later, fisher, 9, active, 0.5)
    found, expected = (values_and_gradients(p.ewc_term(0.7), phi) for p in (kronecker, gaussian))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    draws = [p.sample(torch.Generator().manual_seed(0)) for p in (kronecker, gaussian)]
    torch.testing.assert_close(draws[0], draws[1], rtol=0, atol=0)
    expected = gaussian.state_dict()
    del expected["checksums"]
    assert_same_state({k: kronecker.state_dict()[k] for k in expected}, expected)


@settings(max_examples=25, deadline=None)
@given(
    rank=st.sampled_from([1, 2, None]),
    kind=st.sampled_from([*LAYOUTS]),
    seed=st.integers(0, 10**6),
)
def test_penalty_is_never_negative(rank, kind, seed):
    torch.set_default_dtype(torch.float64)
    layout = LAYOUTS[kind][1]
    posterior = KroneckerPosterior(1e9, rank=rank)
    for number in range(6):
        phi = parameters_of(kind, seed + number)
        fisher = random_fisher({"layer": layout}, phi, seed + number, rank=1)
        posterior.update(phi, fisher, 5, everything(phi), 0.9)
    term = posterior.ewc_term()
    assert len(posterior._parts.layers["layer"].products) == {1: 1, 2: 2, None: 6}[rank]
    for number in range(20):
        assert term(parameters_of(kind, seed + 50 + number)) >= 0


def test_one_product_is_kept_and_equal_tasks_are_exact():
    layout = LAYOUTS["linear"][1]
    phi = parameters_of("linear")
    fisher = random_fisher({"layer": layout}, phi, 3)
    posterior = KroneckerPosterior(0.5)
    for _ in range(4):
        posterior.update(phi, fisher, 5, everything(phi))
    (product,) = posterior._parts.layers["layer"].products
    factor = fisher.layers["layer"]
    torch.testing.assert_close(matrix_of(product), 20 * matrix_of((factor.inputs, factor.outputs)))
    posterior.update(phi, fisher, 5, everything(phi), 0.0)  # nothing of what was before
    (product,) = posterior._parts.layers["layer"].products
    torch.testing.assert_close(matrix_of(product), 5 * matrix_of((factor.inputs, factor.outputs)))


def test_skipped_parameters_count_as_if_they_stood_at_the_mean():
    layout, phi = LAYOUTS["linear"][1], parameters_of("linear")
    posterior = KroneckerPosterior(0.5)
    posterior.update(phi, random_fisher({"layer": layout}, phi, 3), 5, everything(phi))
    phi = parameters_of("linear", 1)
    at_mean = phi | {"layer.bias": posterior.mean["layer.bias"]}
    expected, gradients = values_and_gradients(posterior.ewc_term(), at_mean)
    skips = (
        lambda p: posterior.ewc_term()(p, skip={"layer.bias"}),
        posterior.ewc_term(skip={"layer.bias"}),
    )
    for term in skips:
        value, found = values_and_gradients(term, phi)
        torch.testing.assert_close(value, expected)
        assert found.keys() == {"layer.weight", "norm"}
        for name in found:
            torch.testing.assert_close(found[name], gradients[name])
        with torch.no_grad():
            torch.testing.assert_close(term(phi), expected)
    assert posterior.ewc_term(skip={"layer.bias"}).names == ["norm", "layer.weight"]
    assert posterior.ewc_term(skip=set(phi)).names == []
    assert posterior.ewc_term(0.0).names == []


def test_a_graph_can_be_gone_through_twice_and_shares_gradients():
    layout, phi = LAYOUTS["convolution"][1], parameters_of("convolution")
    posterior = KroneckerPosterior(0.5)
    posterior.update(phi, random_fisher({"layer": layout}, phi, 3), 5, everything(phi))
    phi = parameters_of("convolution", 1)
    value = posterior.ewc_term()(phi)
    value.backward(retain_graph=True)
    once = {n: p.grad.clone() for n, p in phi.items()}
    value.backward()
    for name, p in phi.items():
        torch.testing.assert_close(p.grad, 2 * once[name])


# Parameters that change.


@pytest.mark.parametrize("kind", ["linear", "no bias", "convolution", "table"])
def test_layers_that_grow_keep_what_is_known(kind):
    layout, phi = LAYOUTS[kind][1], parameters_of(kind)
    posterior = KroneckerPosterior(0.5)
    posterior.update(phi, random_fisher({"layer": layout}, phi, 3), 5, everything(phi))
    moved = parameters_of(kind, 1)
    value = posterior.ewc_term()(moved).detach()
    larger = grown(moved, layout, 2)
    assert posterior.align(larger)
    assert not posterior.align(larger)
    found, gradients = values_and_gradients(posterior.ewc_term(), larger)
    torch.testing.assert_close(found, value)
    for name in layout.names:
        assert (gradients[name][-2:] == 0).all()
        assert not posterior.known[name][-2:].any()
    # The new rows alone are active now: the old ones learn nothing.
    before = {n: k.clone() for n, k in posterior.known.items()}
    active = {n: ~k for n, k in before.items()}
    (old,) = posterior._parts.layers["layer"].products
    fisher = random_fisher({"layer": layout}, larger, 4)
    exact = copy.deepcopy(posterior)
    exact.rank = None
    exact.update(larger, fisher, 5, active)
    total = sum(map(matrix_of, exact._parts.layers["layer"].products))
    known = flat(layout, before)
    torch.testing.assert_close(total[known][:, known], matrix_of(old)[known][:, known])
    data = matrix_of((fisher.layers["layer"].inputs, fisher.layers["layer"].outputs))
    torch.testing.assert_close(total[~known][:, ~known], 5 * data[~known][:, ~known])
    assert (total[known][:, ~known] == 0).all()


def test_layers_that_leave_lose_their_bias_or_move_to_another_type():
    layout, phi = LAYOUTS["linear"][1], parameters_of("linear")
    posterior = KroneckerPosterior(0.5)
    posterior.update(phi, random_fisher({"layer": layout}, phi, 3), 5, everything(phi))
    (product,) = posterior._parts.layers["layer"].products
    unbiased = {n: p for n, p in phi.items() if n != "layer.bias"}
    assert posterior.align({n: nn.Parameter(p.float()) for n, p in unbiased.items()})
    (narrow,) = posterior._parts.layers["layer"].products
    assert narrow.inputs.dtype == torch.float32
    torch.testing.assert_close(narrow.inputs.double(), product.inputs[:, :4, :4], rtol=1e-6, atol=0)
    fisher = random_fisher({"layer": LAYOUTS["no bias"][1]}, unbiased, 4)
    posterior.update({n: p.float() for n, p in unbiased.items()}, fisher, 5, everything(unbiased))
    posterior.align({"norm": phi["norm"]})
    assert posterior._parts.layers == {}
    assert posterior.mean.keys() == {"norm"}


def test_a_bias_that_is_frozen_for_an_experience_keeps_its_precision():
    layout, phi = LAYOUTS["linear"][1], parameters_of("linear")
    posterior = KroneckerPosterior(0.5, rank=None)
    first = random_fisher({"layer": layout}, phi, 3)
    second = random_fisher({"layer": LAYOUTS["no bias"][1]}, phi, 4)
    del second.diagonal["layer.bias"]
    posterior.update(phi, first, 5, everything(phi))
    posterior.update(
        phi, second, 5, {n: m for n, m in everything(phi).items() if n != "layer.bias"}
    )
    total = sum(map(matrix_of, posterior._parts.layers["layer"].products)).view(3, 5, 3, 5)
    expected = 5 * matrix_of(product_of(first)).view(3, 5, 3, 5)
    expected[:, :4, :, :4] += 5 * matrix_of(product_of(second)).view(3, 4, 3, 4)
    torch.testing.assert_close(total, expected)


def test_forget_returns_to_the_prior():
    layout, phi = LAYOUTS["linear"][1], parameters_of("linear")
    posterior = KroneckerPosterior(0.5)
    posterior.align(phi)
    posterior.update(phi, random_fisher({"layer": layout}, phi, 3), 5, everything(phi))
    posterior.forget()
    assert posterior.ewc_term().names == []
    assert not any(k.any() for k in posterior.known.values())
    assert posterior.covariances() == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_have_a_posterior_in_float32(dtype):
    layout = LAYOUTS["linear"][1]
    phi = {n: nn.Parameter(p.to(dtype)) for n, p in parameters_of("linear").items()}
    posterior = KroneckerPosterior(0.5)
    fisher = random_fisher({"layer": layout}, phi, 3)
    for _ in range(3):
        posterior.update(phi, fisher, 100_000, everything(phi))
    (product,) = posterior._parts.layers["layer"].products
    assert {t.dtype for t in product} == {torch.float32}
    expected = 300_000 * matrix_of(product_of(fisher)).float()
    torch.testing.assert_close(matrix_of(product), expected, rtol=1e-4, atol=1.0)
    moved = {n: nn.Parameter(p + 0.5) for n, p in phi.items()}
    value, gradients = values_and_gradients(posterior.ewc_term(1e-5), moved)
    assert value.dtype == torch.float32
    assert {g.dtype for g in gradients.values()} == {dtype}
    assert all(g.isfinite().all() for g in gradients.values())
    assert {d.dtype for d in posterior.sample().values()} == {torch.float32}


# Draws, and the exact posterior.


@pytest.mark.parametrize("kind", LAYOUTS)
def test_draws_have_the_covariance_of_the_explicit_matrix(kind):
    layout, phi = LAYOUTS[kind][1], parameters_of(kind)
    posterior = KroneckerPosterior(0.5)
    active = block_masks(phi, layout, 1)
    posterior.update(phi, random_fisher({"layer": layout}, phi, 3), 20, active)
    (product,) = posterior._parts.layers["layer"].products
    size = len(matrix_of(product))
    covariance = (matrix_of(product) + torch.eye(size) / 0.5).inverse()
    generator, n = torch.Generator().manual_seed(0), 5_000
    draws = torch.stack([flat(layout, posterior.sample(generator)) for _ in range(n)]) - flat(
        layout, posterior.mean
    )
    # In units of the standard deviation, all elements of the covariance have an error of 1 / √n.
    white = draws @ torch.linalg.cholesky(covariance.inverse())
    error = white.T @ white / n - torch.eye(size)
    assert error.abs().max() < 6 * (2 / n) ** 0.5
    assert white.mean(0).abs().max() < 6 / n**0.5
    again = posterior.sample(torch.Generator().manual_seed(0))
    torch.testing.assert_close(flat(layout, again) - flat(layout, posterior.mean), draws[0])


def minimise(loss, parameters):
    """A quadratic loss, by the differences of its gradients, from anywhere."""

    def gradient(at):
        nn.utils.vector_to_parameters(at, parameters)
        return nn.utils.parameters_to_vector(torch.autograd.grad(loss(), parameters))

    start = torch.zeros(sum(p.numel() for p in parameters))
    slope = gradient(start)
    hessian = torch.stack([gradient(unit) - slope for unit in torch.eye(len(start))])
    nn.utils.vector_to_parameters(torch.linalg.solve(hessian, -slope), parameters)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rank", [1, None])
def test_of_a_linear_gaussian_model_it_is_the_exact_bayesian_one(bias, rank):
    """Off-diagonals included, over three experiences with features that are not orthogonal."""
    noise, prior_variance, n_in, n_out = 0.3, 2.0, 4, 3
    model = nn.Linear(n_in, n_out, bias)
    posterior = KroneckerPosterior(prior_variance, rank=rank)
    xs, ys = [], []
    for n in (12, 30, 5):
        mixing = torch.randn(n_in, n_in)
        x = torch.randn(n, n_in) @ mixing
        y = x @ torch.randn(n_in, n_out) + noise * torch.randn(n, n_out)
        xs.append(torch.cat([x, torch.ones(n, 1)], 1) if bias else x)
        ys.append(y)
        parameters = dict(model.named_parameters())
        posterior.align(parameters)
        active = everything(parameters)
        prior, ewc = posterior.prior_term(active), posterior.ewc_term()

        def loss(x=x, y=y, prior=prior, ewc=ewc, parameters=parameters):
            nll = ((model(x) - y) ** 2).sum() / (2 * noise**2)
            return nll + prior(parameters) + ewc(parameters)

        minimise(loss, [*parameters.values()])
        fisher = posterior.fisher(model, [(x, y)], likelihood=Gaussian(noise), kind="exact")
        posterior.update(parameters, fisher, n, active)

        features, targets = torch.cat(xs), torch.cat(ys)
        precision = features.T @ features / noise**2 + torch.eye(features.shape[1]) / prior_variance
        mean = torch.linalg.solve(precision, features.T @ targets / noise**2).T
        layout = next(iter(posterior._parts.layers.values())).layout
        torch.testing.assert_close(layout.matrices(posterior.mean)[0], mean, rtol=1e-6, atol=1e-7)
        (covariance,) = posterior.covariances().values()
        unit = torch.eye(mean.numel()).view(-1, 1, *mean.shape)
        turned = covariance.basis.into(unit).flatten(1)
        found = turned * covariance.variances.flatten() @ turned.T
        exact = torch.kron(torch.eye(n_out), precision.inverse().contiguous())
        torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-10)


def test_real_models_share_updates_between_layers_and_the_rest():
    model = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2))
    posterior = KroneckerPosterior(0.5)
    parameters = dict(model.named_parameters())
    posterior.align(parameters)
    batch = (torch.randn(6, 5), torch.tensor([0, 1, 1, 0, 1, 0]))
    fisher = posterior.fisher(model, [batch])
    posterior.update(parameters, fisher, 6, everything(parameters))
    assert posterior.covariances().keys() == {"0", "3"}
    assert set(posterior.ewc_term().names) == parameters.keys()
    torch.testing.assert_close(
        posterior._parts.elements.precision["1.weight"], 2 + 6 * fisher.diagonal["1.weight"]
    )
    assert (posterior._parts.elements.precision["0.weight"] == 2).all()
