"""Low-rank factors with an exact diagonal, against explicit matrices."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD

from avalanche_hnet import KroneckerPosterior, PriorEWC, PriorEWCPlugin
from avalanche_hnet.core.fisher.kronecker_layer import LayerLayout
from avalanche_hnet.core.posterior.kronecker_implicit import kronecker_implicit_step
from avalanche_hnet.core.posterior.low_rank import LowRank, low_rank
from avalanche_hnet.core.posterior.nearest_product import Product
from tests.support.kronecker import (
    assert_same_state,
    block_masks,
    everything,
    flat,
    grown,
    matrix_of,
    random_fisher,
    random_psd,
)
from tests.support.models import mlp
from tests.support.strategies import naive
from tests.support.streams import task_stream

pytestmark = pytest.mark.usefixtures("float64")

CASES = {  # with max_rank=2: both factors become cheaper, or the inputs', or the outputs'
    "both": ((7, 6), LayerLayout("layer.weight", "layer.bias", 1, False, (6,))),
    "inputs": ((3, 6), LayerLayout("layer.weight", "layer.bias", 1, False, (6,))),
    "outputs": ((7, 3), LayerLayout("layer.weight", "layer.bias", 1, False, (3,))),
    "no bias": ((7, 6), LayerLayout("layer.weight", None, 1, False, (6,))),
    "convolution": ((7, 2, 3), LayerLayout("layer.weight", "layer.bias", 1, False, (2, 3))),
    "groups": ((10, 3, 2), LayerLayout("layer.weight", "layer.bias", 2, False, (3, 2))),
    "table": ((9, 7), LayerLayout("layer.weight", None, 1, True, (7,))),
}


def parameters_of(kind, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape, layout = CASES[kind]
    shapes = {"layer.weight": shape, "norm": (3,)}
    if layout.bias is not None:
        shapes["layer.bias"] = shape[:1]
    return {n: nn.Parameter(torch.randn(s, generator=generator)) for n, s in shapes.items()}


def posterior_of(kind, seed=0, *, n_updates=2, masks=None, prior_variance=0.5, **options):
    posterior, phi = KroneckerPosterior(prior_variance, **options), parameters_of(kind, seed)
    for number in range(n_updates):
        fisher = random_fisher({"layer": CASES[kind][1]}, phi, seed + number)
        posterior.update(phi, fisher, 5, masks or everything(phi), 0.9)
    return posterior


def approximated(matrices, max_rank):
    """By the definition, for matrices (K, n, n); diagonals (K, n) as they are."""
    if matrices.dim() == 2:
        return matrices
    pairs = [torch.linalg.eigh(matrix) for matrix in matrices]
    rank = max_rank
    if isinstance(max_rank, float):
        rank = 1
        while any(v[-rank:].sum() < max_rank * v.sum() for v, _ in pairs):
            rank += 1
    if 2 * rank >= matrices.shape[-1]:
        return matrices
    parts = []
    for matrix, (values, vectors) in zip(matrices, pairs, strict=True):
        leading = sum(values[-i] * vectors[:, -i].outer(vectors[:, -i]) for i in range(1, rank + 1))
        parts.append(leading + (matrix - leading).diag().diag())
    return torch.stack(parts)


def penalty_matrix(posterior, max_rank):
    """Of the layer's elements that are known, with the approximation and what is by element."""
    layer = posterior._parts.layers["layer"]
    total = flat(layer.layout, posterior._parts.elements.precision).diag()
    for inputs, outputs in layer.products:
        pair = Product(approximated(inputs, max_rank), approximated(outputs, max_rank))
        total = total + matrix_of(pair)
    known = flat(layer.layout, posterior.known)
    return total * known[:, None] * known


@settings(max_examples=100, deadline=None)
@given(
    n_groups=st.integers(1, 3),
    size=st.integers(1, 9),
    rank=st.integers(1, 9),
    max_rank=st.one_of(st.integers(1, 10), st.floats(0.01, 0.99)),
    scale=st.sampled_from([1e-8, 1.0, 1e8]),
    seed=st.integers(0, 10**6),
)
def test_is_semidefinite_with_the_same_diagonal(n_groups, size, rank, max_rank, scale, seed):
    torch.set_default_dtype(torch.float64)
    matrices = random_psd(n_groups, size, torch.Generator().manual_seed(seed), rank) * scale
    found = low_rank(matrices, *torch.linalg.eigh(matrices), max_rank)
    if not isinstance(found, LowRank):
        assert found is matrices
        return
    assert 2 * found.roots.shape[2] < size
    whole = found.whole()
    assert torch.linalg.eigvalsh(whole).min() >= -1e-12 * scale
    diagonals = (m.diagonal(dim1=1, dim2=2) for m in (whole, matrices))
    torch.testing.assert_close(*diagonals, rtol=1e-12, atol=1e-14 * scale)
    torch.testing.assert_close(
        whole, approximated(matrices, max_rank), rtol=1e-9, atol=1e-10 * scale
    )


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from([*CASES]),
    max_rank=st.one_of(st.integers(1, 4), st.floats(0.1, 0.9)),
    rank=st.sampled_from([1, None]),
    masked=st.sampled_from(["all", "blocks", "by element"]),
    seed=st.integers(0, 10**6),
)
def test_value_and_gradient_equal_the_explicit_matrix(kind, max_rank, rank, masked, seed):
    torch.set_default_dtype(torch.float64)
    layout, phi = CASES[kind][1], parameters_of(kind, seed)
    masks = everything(phi) if masked == "all" else block_masks(phi, layout, seed)
    posterior = posterior_of(kind, seed, masks=masks, rank=rank, max_rank=max_rank)
    if masked == "by element":
        masks[layout.weight].view(-1)[1:3] ^= True
        fisher = random_fisher({"layer": layout}, phi, seed + 7)
        posterior.update(phi, fisher, 5, masks)
    phi = parameters_of(kind, seed + 1)
    term = posterior.ewc_term(2.0)
    value = term(phi)
    if value.requires_grad:  # or nothing is known
        (3 * value).backward()

    deviation = flat(layout, {n: p.detach() - posterior.mean[n] for n, p in phi.items()})
    slope = 2 * penalty_matrix(posterior, max_rank) @ deviation
    norm = phi["norm"].detach() - posterior.mean["norm"]
    weights = posterior.precision["norm"] * posterior.known["norm"]
    expected = deviation @ slope / 2 + (weights * norm**2).sum()
    torch.testing.assert_close(value.detach(), expected, rtol=1e-9, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(term(phi), expected, rtol=1e-9, atol=1e-10)
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in phi.items()}
    torch.testing.assert_close(flat(layout, found), 3 * slope, rtol=1e-8, atol=1e-9)
    assert (flat(layout, found)[~flat(layout, posterior.known)] == 0).all()
    assert value >= 0


@pytest.mark.parametrize("kind", CASES)
def test_whole_factors_are_taken_where_they_cost_no_more(kind):
    phi = parameters_of(kind, 1)
    exact, whole = posterior_of(kind), posterior_of(kind, max_rank=7)
    assert torch.equal(whole.ewc_term()(phi), exact.ewc_term()(phi))
    assert not torch.equal(posterior_of(kind, max_rank=2).ewc_term()(phi), exact.ewc_term()(phi))


def test_factors_of_low_rank_are_exact():
    layout, phi = CASES["both"][1], parameters_of("both")
    values = []
    for max_rank in (None, 2, 0.999):
        posterior = KroneckerPosterior(0.5, max_rank=max_rank)
        posterior.update(phi, random_fisher({"layer": layout}, phi, 3, 2), 5, everything(phi))
        values.append(posterior.ewc_term()(parameters_of("both", 1)).detach())
    torch.testing.assert_close(values, values[:1] * 3, rtol=1e-12, atol=0)


def test_only_the_penalty_is_approximated():
    exact, cheaper = posterior_of("both"), posterior_of("both", max_rank=2)
    assert_same_state(cheaper.state_dict(), exact.state_dict())
    for name, precision in exact.precision.items():
        assert torch.equal(cheaper.precision[name], precision)
    draws = [p.sample(torch.Generator().manual_seed(1)) for p in (exact, cheaper)]
    torch.testing.assert_close(*draws, rtol=0, atol=0)

    other = KroneckerPosterior(0.5, max_rank=0.3)
    other.load_state_dict(exact.state_dict())
    phi = parameters_of("both", 1)
    again = posterior_of("both", max_rank=0.3)
    assert torch.equal(other.ewc_term()(phi), again.ewc_term()(phi))


def test_layers_that_grow_stay_cheap():
    layout, posterior = CASES["both"][1], posterior_of("both", max_rank=2)
    phi = grown(parameters_of("both"), layout, 3)
    assert posterior.align(phi)
    (layer,) = posterior.ewc_term().layers
    assert all(isinstance(factor, LowRank) for factor in layer.layer._factors[0])
    moved = {n: nn.Parameter(p.detach() + 0.3) for n, p in phi.items()}
    posterior.ewc_term()(moved).backward()
    deviation = flat(layout, {n: p.detach() - posterior.mean[n] for n, p in moved.items()})
    expected = penalty_matrix(posterior, 2) @ deviation
    found = flat(layout, {n: p.grad for n, p in moved.items()})
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("all_known", [True, False])
def test_implicit_steps_are_those_of_the_approximated_penalty(kind, all_known):
    layout, phi = CASES[kind][1], parameters_of(kind, 1)
    masks = None if all_known else block_masks(phi, layout, 3)
    posterior = posterior_of(kind, masks=masks, max_rank=2)
    before = copy.deepcopy(phi)
    kronecker_implicit_step(SGD(phi.values(), lr=0.7), phi, posterior.ewc_term(3.0))
    known = flat(layout, posterior.known)
    mean = flat(layout, posterior.mean)
    start = flat(layout, before).detach()
    matrix = torch.eye(len(mean)) + 0.7 * 3 * penalty_matrix(posterior, 2)
    expected = torch.linalg.solve(matrix, (start - mean) * known) + torch.where(known, mean, start)
    torch.testing.assert_close(flat(layout, phi).detach(), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(dtype):
    posterior = posterior_of("both", max_rank=2)
    phi = {n: nn.Parameter(p.to(dtype)) for n, p in parameters_of("both", 1).items()}
    expected = posterior.ewc_term()({n: p.double() for n, p in phi.items()}).item()
    posterior.align(phi)
    value = posterior.ewc_term(1e-3)(phi)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(1e-3 * expected, rel=0.02)
    value.backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in phi.values())


@pytest.mark.parametrize(
    ("value", "error"),
    [(0, ValueError), (-1, ValueError), (0.0, ValueError), (1.0, ValueError), (1.5, ValueError),
     (float("nan"), ValueError), ("8", TypeError), (True, TypeError)],
)  # fmt: skip
def test_wrong_max_ranks_are_named(value, error):
    with pytest.raises(error, match=r"max_rank must be .*got"):
        KroneckerPosterior(max_rank=value)


def test_max_rank_needs_kronecker_products():
    with pytest.raises(ValueError, match="max_rank=4 needs structure='kronecker', got 'diagonal'"):
        PriorEWCPlugin(max_rank=4)


def test_training_goes_through_the_cheaper_products():
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    plugin = PriorEWCPlugin(structure="kronecker", max_rank=2)
    strategy = naive(mlp(n_out=4), plugin)
    for experience in task_stream(n_tasks=2, n_classes=4).train_stream:
        strategy.train(experience)
    layers = plugin.posterior.ewc_term().layers
    assert any(isinstance(f, LowRank) for layer in layers for f in layer.layer._factors[0])
    model = nn.Linear(3, 2)
    one_call = PriorEWC(
        model=model, optimizer=SGD(model.parameters(), 0.1), structure="kronecker", max_rank=2
    )
    assert one_call.posterior.max_rank == 2
