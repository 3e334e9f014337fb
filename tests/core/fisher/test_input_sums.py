import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from avalanche_hnet.core.fisher.input_sums import PatchSums
from avalanche_hnet.core.fisher.kronecker_rules import convolution
from avalanche_hnet.core.fisher.layer_rows import Rows

pytestmark = pytest.mark.usefixtures("float64")

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def several(*numbers):
    return st.tuples(*[st.sampled_from(numbers)] * 3)


@settings(max_examples=100, deadline=None)
@given(
    n_spatial=st.integers(1, 3),
    n_channels=st.sampled_from([1, 3, 16]),
    groups=st.integers(1, 2),
    size=several(4, 5, 6),
    kernel=several(1, 2, 3),
    stride=several(1, 1, 2),
    dilation=several(1, 1, 2),
    padding=several(0, 1, 2),
    padding_mode=st.sampled_from(["zeros", "circular"]),
    has_bias=st.booleans(),
)
def test_inputs_of_any_convolution_equal_the_products_of_its_patches(
    n_spatial,
    n_channels,
    groups,
    size,
    kernel,
    stride,
    dilation,
    padding,
    padding_mode,
    has_bias,
):
    n = slice(n_spatial)
    sizes = zip(size, padding, dilation, kernel, strict=True)
    assume(all(s + 2 * p > d * (k - 1) for s, p, d, k in sizes))
    layer = CONVOLUTIONS[n_spatial](
        n_channels * groups,
        groups,
        kernel[n],
        stride[n],
        padding[n],
        dilation[n],
        groups,
        has_bias,
        padding_mode,
    )
    sums = PatchSums(torch.zeros(()), layer, has_bias=has_bias, reduces=False)
    products, n_rows = 0, 0
    for inputs in torch.randn(2, 3, n_channels * groups, *size[n]):
        patches, grads = convolution(layer, inputs, torch.ones_like(layer(inputs)))
        sums.add(layer, inputs, Rows(patches, grads))
        rows = patches.flatten(-1 - n_spatial).flatten(1, -2)
        if has_bias:
            rows = torch.cat([rows, torch.ones_like(rows[..., :1])], -1)
        products, n_rows = products + rows.mT @ rows, n_rows + rows.shape[1]
    torch.testing.assert_close(sums.mean(), products / n_rows, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_its_name(padding):
    """ "same" puts more zeros after an image than before it, if the kernel is even."""
    layer = nn.Conv2d(16, 2, (2, 3), padding=padding, bias=False)
    sums = PatchSums(torch.zeros(()), layer, has_bias=False, reduces=False)
    inputs = torch.randn(4, 16, 6, 6)
    patches, grads = convolution(layer, inputs, torch.ones_like(layer(inputs)))
    sums.add(layer, inputs, Rows(patches, grads))
    rows = patches.flatten(-3).flatten(1, -2)
    torch.testing.assert_close(sums.mean(), rows.mT @ rows / rows.shape[1])
