"""The gradient of class labels in closed form is that of their NLL."""

import pytest
import torch

from avalanche_hnet import Categorical

pytestmark = pytest.mark.usefixtures("float64")

SHAPES = [(5, 3), (5, 3, 4), (5, 3, 2, 2)]
OPTIONS = {
    "plain": {},
    "weights": {"class_weights": [1.0, 2.0, 0.5]},
    "smoothing": {"label_smoothing": 0.2},
    "ignored class": {"ignore_index": 1},
}


class Doubled(Categorical):
    def nll(self, outputs, targets):
        return 2 * super().nll(outputs, targets)


def by_autograd(likelihood, outputs, targets):
    outputs = outputs.clone().requires_grad_()
    return torch.autograd.grad(likelihood.nll(outputs, targets).sum(), outputs)[0]


@pytest.mark.parametrize(
    ("shape", "dtype"), [*((shape, torch.int64) for shape in SHAPES), (SHAPES[0], torch.uint8)]
)
@pytest.mark.parametrize(
    "likelihood",
    [*(Categorical(**options) for options in OPTIONS.values()), Doubled()],
    ids=[*OPTIONS, "subclass"],
)
def test_gradient_of_labels(likelihood, shape, dtype):
    outputs = 3 * torch.randn(shape)
    targets = torch.randint(3, (shape[0], *shape[2:])).to(dtype)
    expected = by_autograd(likelihood, outputs, targets.long())
    torch.testing.assert_close(likelihood.nll_gradient(outputs, targets), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_of_padded_labels_and_of_probabilities(shape):
    outputs, labels = torch.randn(shape), torch.randint(3, (shape[0], *shape[2:]))
    labels[0] = -100
    for targets in (labels, torch.randn(shape).softmax(1)):
        expected = by_autograd(Categorical(), outputs, targets)
        torch.testing.assert_close(Categorical().nll_gradient(outputs, targets), expected)


@pytest.mark.parametrize("targets", [[0, 1, 3], [0, 1, -1], [0, 1], [[0], [1], [2]]], ids=str)
def test_labels_that_do_not_fit(targets):
    with pytest.raises((ValueError, RuntimeError)):
        Categorical().nll_gradient(torch.randn(3, 3), torch.tensor(targets))


def test_gradient_leaves_the_outputs_alone():
    outputs = torch.randn(3, 3)
    before = outputs.clone()
    Categorical().nll_gradient(outputs, torch.arange(3))
    assert torch.equal(outputs, before)
    assert not outputs.requires_grad
