"""Clipped gradients against arithmetic by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from avalanche_hnet.core.common.clipping import Clipping


def parameter(gradient):
    found = nn.Parameter(torch.zeros(len(gradient), dtype=torch.float64))
    found.grad = torch.tensor(gradient, dtype=torch.float64)
    return found


def by_hand(gradients, norm, value):
    if value is not None:
        gradients = [[max(-value, min(value, g)) for g in gradient] for gradient in gradients]
    if norm is not None:
        total = sum(g * g for gradient in gradients for g in gradient) ** 0.5
        factor = min(1.0, norm / (total + 1e-6))
        gradients = [[factor * g for g in gradient] for gradient in gradients]
    return gradients


numbers = st.floats(-1e3, 1e3, allow_subnormal=False)
bounds = st.none() | st.floats(1e-3, 1e3)


@given(st.lists(st.lists(numbers, min_size=1, max_size=3), min_size=1, max_size=3), bounds, bounds)
def test_by_value_first_and_then_by_norm(gradients, norm, value):
    if norm is None and value is None:
        return
    parameters = [parameter(gradient) for gradient in gradients]
    factor = Clipping(norm, value).apply(parameters)
    for p, gradient, expected in zip(
        parameters, gradients, by_hand(gradients, norm, value), strict=True
    ):
        expected = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(p.grad, expected, rtol=1e-9, atol=1e-12)
        unclipped = torch.tensor(gradient, dtype=torch.float64)
        of_graph = Clipping(norm, value).of_graph(unclipped, factor)
        torch.testing.assert_close(of_graph, expected, rtol=1e-9, atol=1e-12)
        assert value is None or p.grad.abs().max() <= value
    total = torch.cat([p.grad for p in parameters]).norm()
    assert norm is None or total <= norm * (1 + 1e-12)


def test_factor_and_parameters_without_gradient():
    touched, untouched = parameter([3.0, 4.0]), nn.Parameter(torch.zeros(2))
    assert Clipping(5.1).apply([touched, untouched]) == 1
    assert Clipping(value=4.1).apply([touched, untouched]) == 1
    assert float(Clipping(0.5).apply([touched, untouched])) == pytest.approx(0.1, rel=1e-6)
    assert untouched.grad is None
    assert Clipping(1.0).apply([untouched]) == 1


def test_sparse_gradients():
    """Rows that were looked up twice have the sum of both gradients."""
    gradients = []
    for sparse in (False, True):
        torch.manual_seed(0)
        layer = nn.Embedding(5, 2, sparse=sparse)
        layer(torch.tensor([1, 1, 2])).sum().backward()
        Clipping(norm=2.0, value=1.5).apply(layer.parameters())
        gradients.append(layer.weight.grad.to_dense())
    torch.testing.assert_close(*gradients)
    assert gradients[0].norm() == pytest.approx(2.0, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_large_norms_in_any_precision(dtype):
    """Of which the sum of squares is beyond the range of float16."""
    wide, narrow = (nn.Parameter(torch.zeros(10_000, dtype=d)) for d in (torch.float32, dtype))
    wide.grad, narrow.grad = torch.full_like(wide, 600.0), torch.full_like(narrow, 800.0)
    Clipping(norm=1e4).apply([narrow, wide])  # the norm is 1e5
    tolerance = 2 * torch.finfo(dtype).eps + 1e-6
    torch.testing.assert_close(wide.grad, torch.full_like(wide, 60.0), rtol=tolerance, atol=0)
    torch.testing.assert_close(narrow.grad, torch.full_like(narrow, 80.0), rtol=tolerance, atol=0)


@given(st.lists(st.lists(numbers, min_size=1, max_size=3), min_size=1, max_size=3), bounds, bounds)
def test_it_is_what_pytorch_does(gradients, norm, value):
    if norm is None and value is None:
        return
    ours, theirs = ([parameter(gradient) for gradient in gradients] for _ in range(2))
    Clipping(norm, value).apply(ours)
    if value is not None:
        nn.utils.clip_grad_value_(theirs, value)
    if norm is not None:
        nn.utils.clip_grad_norm_(theirs, norm)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "norm or value must be given, got None for both"),
        ({"norm": 0}, ValueError, "norm must be positive and finite, got 0"),
        ({"norm": float("inf")}, ValueError, "norm must be positive and finite, got inf"),
        ({"norm": float("nan")}, ValueError, "norm must be positive and finite, got nan"),
        ({"value": -1.0}, ValueError, "value must be positive and finite, got -1.0"),
        ({"value": "1"}, TypeError, "value must be a positive number, got '1'"),
        ({"norm": 1.0, "value": 0.0}, ValueError, "value must be positive and finite, got 0.0"),
    ],
)
def test_bad_bounds_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        Clipping(**options)
