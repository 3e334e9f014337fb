"""The nearest Kronecker product against singular values of the rearranged sum."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_hnet.core.posterior.nearest_product import (
    Product,
    _Basis,
    nearest_product,
    nearest_products,
)
from tests.support.kronecker import matrix_of, random_psd

pytestmark = pytest.mark.usefixtures("float64")


def random_terms(seed, n_terms, n_inputs=4, n_outputs=3, n_groups=1, rank=None, is_diagonal=False):
    torch.set_default_dtype(torch.float64)
    generator = torch.Generator().manual_seed(seed)
    terms = []
    for _ in range(n_terms):
        inputs = random_psd(n_groups, n_inputs, generator, rank)
        if is_diagonal:
            inputs = inputs.diagonal(dim1=1, dim2=2).clone()
        scale = 10 ** (2 * torch.randn(1, generator=generator))
        terms.append(Product(scale * inputs, random_psd(n_groups, n_outputs, generator, rank)))
    return terms


def rearranged(terms, group=0):
    """Σ_k vec(A_k) vec(G_k)ᵀ."""
    full = [(torch.diag_embed(a) if a.dim() == 2 else a, g) for a, g in terms]
    return sum(torch.outer(a[group].flatten(), g[group].flatten()) for a, g in full)


def error(approximations, terms):
    return sum(
        (rearranged(approximations, k) - rearranged(terms, k)).square().sum()
        for k in range(len(terms[0].inputs))
    )


def is_psd(matrix, tolerance=1e-12):
    values = torch.linalg.eigvalsh(matrix)
    return bool(values.min() >= -tolerance * values.abs().max())


CASES = {
    "seed": st.integers(0, 10**6),
    "n_terms": st.integers(1, 5),
    "n_inputs": st.integers(1, 5),
    "n_outputs": st.integers(1, 4),
    "n_groups": st.integers(1, 3),
    "rank": st.sampled_from([None, 1]),
    "is_diagonal": st.booleans(),
}


@settings(max_examples=80, deadline=None)
@given(**CASES)
def test_equals_the_leading_singular_pair_of_the_rearranged_sum(**case):
    terms = random_terms(**case)
    found = nearest_product(terms)
    groups = range(case["n_groups"])
    for k in groups:
        left, values, right = torch.linalg.svd(rearranged(terms, k))
        best = values[0] * torch.outer(left[:, 0], right[0])
        if len(values) == 1 or values[0] - values[1] > 1e-3 * values[0]:
            torch.testing.assert_close(
                rearranged([found], k), best, rtol=1e-9, atol=1e-9 * float(values[0])
            )
    lost = sum(torch.linalg.svdvals(rearranged(terms, k))[1:].square().sum() for k in groups)
    size = sum(rearranged(terms, k).square().sum() for k in groups)
    torch.testing.assert_close(error([found], terms), lost, rtol=1e-8, atol=1e-12 * float(size))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), gamma=st.floats(0.1, 1), rank=st.sampled_from([1, 2, 3]))
def test_positive_semidefinite_and_close_to_the_sum_over_50_accumulations(seed, gamma, rank):
    products, total = (), 0
    for step in range(50):
        (new,) = random_terms(seed + step, 1, rank=1 + step % 3)
        kept = [Product(a * gamma, g) for a, g in products]
        products = nearest_products([*kept, new], rank)
        total = gamma * total + matrix_of(new)
        assert len(products) <= rank
        for inputs, outputs in products:
            assert is_psd(inputs[0])
            assert is_psd(outputs[0])
    difference = sum(map(matrix_of, products)) - total
    assert difference.norm() < 0.6 * total.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_does_not_accumulate(dtype):
    """Fifty equal terms with scales that float32 can hold only if A and G share them."""
    (term,) = random_terms(0, 1)
    large = Product((term.inputs * 1e28).to(dtype), (term.outputs * 1e-20).to(dtype))
    products = ()
    for _ in range(50):
        products = nearest_products([*products, large], 1)
    ((inputs, outputs),) = products
    torch.testing.assert_close(inputs.norm(), outputs.norm(), rtol=1e-4, atol=0)
    expected = 50e8 * matrix_of(term)
    found = matrix_of((inputs.double(), outputs.double()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.max()))
    assert inputs.dtype == dtype


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_does_not_depend_on_order_scale_or_basis(seed):
    terms = random_terms(seed, 3)
    expected = matrix_of(nearest_product(terms))
    close = {"rtol": 1e-7, "atol": 1e-8 * float(expected.abs().max())}
    torch.testing.assert_close(matrix_of(nearest_product(terms[::-1])), expected, **close)
    shifted = [Product(a * 8.0**k, g / 8.0**k) for k, (a, g) in enumerate(terms)]
    torch.testing.assert_close(matrix_of(nearest_product(shifted)), expected, **close)
    u, _ = torch.linalg.qr(torch.randn(4, 4))
    v, _ = torch.linalg.qr(torch.randn(3, 3))
    turned = [Product(u @ a @ u.T, v @ g @ v.T) for a, g in terms]
    a, g = nearest_product(turned)
    torch.testing.assert_close(matrix_of((u.T @ a @ u, v.T @ g @ v)), expected, **close)


def test_sums_that_are_products_are_exact():
    first, second = random_terms(1, 2)
    for terms in (
        [first, first],
        [first, Product(first.inputs, second.outputs)],
        [first, Product(second.inputs, first.outputs)],
        [first, Product(torch.zeros_like(second.inputs), second.outputs)],
    ):
        expected = sum(map(matrix_of, terms))
        torch.testing.assert_close(matrix_of(nearest_product(terms)), expected)


def test_equal_singular_values_do_not_mix_signs():
    """Two terms without anything in common, where any mixture is a singular vector."""
    parts = [torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)]
    parts[0][0, :2, :2], parts[1][0, 2:, 2:] = torch.eye(2), torch.eye(2)
    terms = [Product(parts[0], parts[0]), Product(parts[1], parts[1])]
    inputs, outputs = nearest_product(terms)
    assert is_psd(inputs[0])
    assert is_psd(outputs[0])
    torch.testing.assert_close(error([Product(inputs, outputs)], terms), torch.tensor(4.0))


def test_groups_are_on_their_own_and_may_be_empty():
    terms = random_terms(3, 3, n_groups=3)
    for inputs, _ in terms:
        inputs[1] = 0
    found = nearest_product(terms)
    for k in (0, 2):
        alone = nearest_product([Product(a[k : k + 1], g[k : k + 1]) for a, g in terms])
        torch.testing.assert_close(found.inputs[k], alone.inputs[0])
        torch.testing.assert_close(found.outputs[k], alone.outputs[0])
    assert (found.inputs[1] == 0).all()
    assert (found.outputs[1] == 0).all()


# Several products.


@settings(max_examples=40, deadline=None)
@given(**CASES | {"n_terms": st.integers(2, 5)})
def test_losses_are_those_of_merging_each_pair(**case):
    terms = random_terms(**case)
    losses = _Basis.of(terms).losses()
    for i in range(len(terms)):
        for j in range(i):
            pair = [terms[i], terms[j]]
            size = error([Product(a * 0, g) for a, g in pair], pair)
            torch.testing.assert_close(
                losses[i, j],
                error([nearest_product(pair)], pair),
                rtol=1e-6,
                atol=1e-9 * float(size),
            )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), rank=st.integers(1, 5))
def test_merged_products_lie_between_the_optimum_and_one_product(seed, rank):
    terms = random_terms(seed, 5)
    products = nearest_products(terms, rank)
    assert len(products) == min(rank, 5)
    lost = error(products, terms)
    optimum = torch.linalg.svdvals(rearranged(terms))[rank:].square().sum()
    slack = 1e-12 * rearranged(terms).square().sum()
    assert optimum - slack <= lost
    assert is_psd(sum(map(matrix_of, products)))
    assert len(nearest_products(terms, None)) == 5


def test_the_nearest_two_products_need_not_be_positive_semidefinite():
    """Which is why products are merged instead."""
    worst = 0.0
    for seed in range(30):
        terms = random_terms(seed, 4, rank=1)
        left, values, right = torch.linalg.svd(rearranged(terms))
        two = sum(
            values[j] * torch.kron(right[j].view(3, 3), left[:, j].view(4, 4).contiguous())
            for j in range(2)
        )
        spectrum = torch.linalg.eigvalsh((two + two.T) / 2)
        worst = min(worst, float(spectrum[0] / spectrum[-1]))
        assert is_psd(sum(map(matrix_of, nearest_products(terms, 2))))
    assert worst < -1e-3


def test_terms_that_are_zero_are_left_out():
    first, second = random_terms(1, 2)
    nothing = Product(first.inputs * 0, first.outputs)
    assert len(nearest_products([first, nothing, second], None)) == 2
    assert nearest_products([nothing], 1) == ()
