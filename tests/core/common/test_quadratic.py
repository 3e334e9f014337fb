import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from avalanche_hnet.core.common.quadratic import Quadratic, _dot_products

pytestmark = pytest.mark.usefixtures("float64")


def example(n_tensors=3):
    phi = {f"p{i}": nn.Parameter(torch.randn(i + 1, 4)) for i in range(n_tensors)}
    weights = {n: torch.rand_like(p) for n, p in phi.items()}
    centres = {n: torch.randn_like(p) for n, p in phi.items()}
    return phi, weights, centres


def plain(phi, weights, centres, names):
    return sum((weights[n] * (phi[n] - centres[n]) ** 2).sum() / 2 for n in names)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 4), skipped=st.integers(0, 3), factor=st.sampled_from([1.0, -0.5]))
def test_value_and_gradients_are_those_of_the_formula(n, skipped, factor):
    torch.set_default_dtype(torch.float64)
    phi, weights, centres = example(n)
    skip = [f"p{i}" for i in range(skipped)]
    names = [name for name in phi if name not in skip]
    term = Quadratic(weights, centres)
    for _ in range(2):  # called again and again
        value = term(phi, skip=skip)
        expected = plain(phi, weights, centres, names)
        torch.testing.assert_close(value, torch.as_tensor(expected, dtype=value.dtype))
        if not names:
            continue
        parameters = [phi[name] for name in names]
        torch.testing.assert_close(
            torch.autograd.grad(factor * value, parameters),
            torch.autograd.grad(factor * expected, parameters),
        )
        with torch.no_grad():
            for p in parameters:
                p += 0.1


def test_gradients_add_up_with_those_of_the_loss():
    phi, weights, centres = example()
    term = Quadratic(weights, centres)
    for _ in range(2):
        loss = sum((p**3).sum() for p in phi.values())
        (loss + term(phi)).backward()
        (loss_again := sum((p**3).sum() for p in phi.values())).backward()
        expected = plain(phi, weights, centres, phi) + 2 * loss_again.detach() * 0
        gradients = torch.autograd.grad(expected, list(phi.values()))
        for p, g in zip(phi.values(), gradients, strict=True):
            torch.testing.assert_close(p.grad, g + 2 * 3 * p.detach() ** 2)
            p.grad = None
        with torch.no_grad():
            for p in phi.values():
                p *= 0.9


def test_a_graph_that_is_kept_can_be_used_again():
    phi, weights, centres = example()
    value = Quadratic(weights, centres)(phi)
    first = torch.autograd.grad(value, list(phi.values()), retain_graph=True)
    kept = [g.clone() for g in first]
    for g in first:
        g.zero_()
    again = torch.autograd.grad(3 * value, list(phi.values()), retain_graph=True)
    torch.testing.assert_close(again, tuple(3 * g for g in kept))
    value.backward()
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


def test_parameters_that_changed_before_the_gradient_are_noticed():
    phi, weights, centres = example()
    value = Quadratic(weights, centres)(phi)
    with torch.no_grad():
        phi["p0"].add_(1)
    with pytest.raises(RuntimeError, match="inplace operation"):
        value.backward()


def test_weights_and_centres_are_left_alone():
    phi, weights, centres = example()
    before = [t.clone() for t in (*weights.values(), *centres.values())]
    (2 * Quadratic(weights, centres)(phi)).backward()
    for t, old in zip((*weights.values(), *centres.values()), before, strict=True):
        assert torch.equal(t, old)


def test_products_on_other_devices_equal_those_on_the_cpu(monkeypatch):
    pairs = [(torch.rand(3, 2), torch.rand(3, 2)), (torch.rand(4), torch.rand(4))]
    gradients = [w * d for w, d in pairs]
    expected = _dot_products(gradients, [d.clone() for _, d in pairs])

    class Elsewhere(torch.Tensor):
        is_cpu = False

    elsewhere = [g.as_subclass(Elsewhere) for g in gradients]
    found = _dot_products(elsewhere, [d.clone() for _, d in pairs])
    torch.testing.assert_close(found.as_subclass(torch.Tensor), expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_value_alone_is_that_with_gradients(layout):
    phi, weights, centres = example()
    phi["large"] = nn.Parameter(torch.randn(70, 10, 10, 10).to(memory_format=layout))
    weights["large"], centres["large"] = torch.rand(70, 10, 10, 10), torch.randn(70, 10, 10, 10)
    term = Quadratic(weights, centres)
    with torch.no_grad():
        value = term(phi, skip=["p1"])
    torch.testing.assert_close(value, term(phi, skip=["p1"]).detach())
    assert not value.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_parameters_in_half_precision(dtype, factor):
    phi, weights, centres = example()
    half = {n: nn.Parameter(p.detach().to(dtype)) for n, p in phi.items()}
    same = {n: nn.Parameter(p.detach().to(p.dtype).double()) for n, p in half.items()}
    term = Quadratic(weights, centres)
    value = term(half)
    torch.testing.assert_close(value, term(same))
    (factor * value).backward(retain_graph=True)
    first = {n: p.grad.clone() for n, p in half.items()}
    (factor * term(same)).backward()
    for name, p in half.items():
        assert p.grad.dtype == dtype
        torch.testing.assert_close(first[name], same[name].grad.to(dtype))
    (factor * value).backward()
    for name, p in half.items():
        torch.testing.assert_close(p.grad, 2 * first[name])
