import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from avalanche_hnet.core.fisher.gram_sums import GramSums
from avalanche_hnet.core.fisher.shift_sums import ShiftSums, share_of_work

pytestmark = pytest.mark.usefixtures("float64")


@settings(max_examples=50, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 2))] * 2),
    groups=st.integers(1, 2),
)
def test_equals_the_products_of_patches(kernel, dilation, window, padding, groups):
    sizes = zip(window, dilation, kernel, padding, strict=True)
    size = [w + d * (k - 1) - sum(around) for w, d, k, around in sizes]
    assume(min(size) > 0)
    images = torch.randn(2, 3, 2 * groups, *size, dtype=torch.float64)
    sums = ShiftSums(images, groups, 2, kernel, dilation)
    expected = 0
    for batch in images:
        sums.add(batch, 0.7, padding)
        padded = nn.functional.pad(batch, (*padding[1], *padding[0]))
        patches = nn.functional.unfold(padded, kernel, dilation).unflatten(1, (groups, -1))
        expected = expected + 0.7 * torch.einsum("bkip,bkjp->kij", patches, patches)
    torch.testing.assert_close(sums.total(), expected, rtol=1e-12, atol=1e-12)


def test_float32_loses_no_more_than_rounding():
    images = torch.randn(8, 16, 10, 10, dtype=torch.float32)
    images[:, 3, 1:-1, 1:-1] = 1e-3  # a channel with next to nothing but its edges
    sums = ShiftSums(images, 1, 16, (3, 3), (1, 1))
    sums.add(images, 1.0)
    patches = nn.functional.unfold(images, 3).double()
    expected = torch.einsum("bip,bjp->ij", patches, patches)
    found = sums.total()[0].double()
    scale = expected.diagonal().sqrt()
    edges = float(images[:, 3].double().square().sum())
    assert ((found - expected).abs() <= 1e-5 * scale[:, None] * scale + 1e-5 * edges).all()
    assert torch.equal(found, found.T)


@pytest.mark.parametrize("groups", [1, 4])
def test_rounding_makes_no_sum_of_squares_negative(groups):
    """Of channels that are not zero in one row alone, which most windows leave behind."""
    sums = ShiftSums(torch.zeros((), dtype=torch.float32), groups, 16 // groups, (3, 3), (1, 1))
    for _ in range(3):
        images = torch.zeros(50, 16, 6, 6, dtype=torch.float32)
        images[:, :, 1] = torch.randn(50, 16, 6, dtype=torch.float32)
        sums.add(images, 0.7)
    assert (sums.total().diagonal(dim1=1, dim2=2) >= 0).all()


def test_a_kernel_of_three_by_three_takes_thirteen_products_and_edges():
    assert share_of_work((10**9, 10**9), (3, 3), (1, 1)) == pytest.approx(13 / 81)
    assert share_of_work((2, 2), (3, 3), (1, 1)) == pytest.approx(45 / 81)


def test_products_with_zeros_around_an_image_are_left_out():
    assert share_of_work((4, 4), (3, 3), (1, 1)) == pytest.approx(29 / 81)
    assert share_of_work((4, 4), (3, 3), (1, 1), ((1, 1), (1, 1))) < 10 / 81


@pytest.mark.parametrize("block", [2, 256])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("enough_rows", [1, 13, 256])
def test_sums_of_products_of_rows(groups, block, enough_rows, monkeypatch):
    monkeypatch.setattr("avalanche_hnet.core.fisher.gram_sums._BLOCK", block)
    monkeypatch.setattr("avalanche_hnet.core.fisher.gram_sums._ENOUGH_ROWS", enough_rows)
    rows = torch.randn(groups, 4, 3, 5)
    sums = GramSums(rows, groups, 5)
    assert not sums.total().any()
    sums.add(rows, 0.5)
    for _ in range(3):
        sums.add(rows.movedim(-1, 2).contiguous().movedim(2, -1), 0.25)
    expected = 1.25 * torch.einsum("kbri,kbrj->kij", rows, rows)
    torch.testing.assert_close(sums.total(), expected)
    assert torch.equal(sums.total(), sums.total().mT)
