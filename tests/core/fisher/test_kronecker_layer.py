import pytest
import torch
from torch import nn

from avalanche_hnet.core.fisher.kronecker_layer import layout_of

LAYERS = {
    "linear": (lambda: nn.Linear(4, 3), (1, 3, 5)),
    "linear without bias": (lambda: nn.Linear(4, 3, bias=False), (1, 3, 4)),
    "grouped convolution": (lambda: nn.Conv2d(4, 6, (3, 2), groups=2), (2, 3, 13)),
    "embedding": (lambda: nn.Embedding(7, 4), (1, 4, 7)),
}


def layout_and_tensors(make_layer):
    layer = make_layer()
    tensors = {f"part.{name}": torch.randn_like(p) for name, p in layer.named_parameters()}
    return layout_of("part", layer, tensors), tensors


@pytest.mark.parametrize("name", LAYERS)
def test_matrices_and_back(name):
    make_layer, shape = LAYERS[name]
    layout, tensors = layout_and_tensors(make_layer)
    matrices = layout.matrices(tensors)
    assert matrices.shape == shape
    assert layout.sizes(tensors[layout.weight]) == shape
    back = layout.tensors(matrices)
    assert back.keys() == tensors.keys() == set(layout.names)
    assert all(torch.equal(back[n], tensors[n]) for n in tensors)


def test_masks_stay_masks():
    layout, tensors = layout_and_tensors(LAYERS["grouped convolution"][0])
    masks = {n: t > 0 for n, t in tensors.items()}
    assert layout.matrices(masks).dtype == torch.bool
    assert all(torch.equal(m, masks[n]) for n, m in layout.tensors(layout.matrices(masks)).items())


def test_the_product_with_the_matrices_is_the_layer():
    layer = nn.Linear(4, 3)
    layout = layout_of("", layer, {"weight", "bias"})
    x = torch.randn(5, 4)
    w = layout.matrices(dict(layer.named_parameters()))[0]
    torch.testing.assert_close(torch.cat([x, torch.ones(5, 1)], 1) @ w.T, layer(x))


@pytest.mark.parametrize(
    ("layer", "names"),
    [
        (nn.LayerNorm(3), {"weight", "bias"}),
        (nn.Linear(3, 3), {"bias"}),
        (nn.Bilinear(2, 2, 3), set()),
        (nn.LSTM(3, 3), {"weight_ih_l0"}),
    ],
)
def test_what_makes_up_no_matrices(layer, names):
    assert layout_of("", layer, names) is None


def test_parameters_that_are_left_out():
    layout = layout_of("a.b", nn.Linear(3, 2), {"a.b.weight"})
    assert layout.names == ("a.b.weight",)
