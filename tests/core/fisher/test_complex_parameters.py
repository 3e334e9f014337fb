import pytest
import torch
from torch import nn

from avalanche_hnet import PriorEWCPlugin, diagonal_fisher
from tests.support.oracles import assert_close, loop_fisher
from tests.support.strategies import naive
from tests.support.streams import labelled_benchmark

X, Y = torch.randn(6, 4), torch.arange(6) % 3


class Spectral(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.weight = nn.Linear(4, 4), nn.Parameter(torch.randn(4, 3) + 1j)

    def forward(self, x):
        return (self.first(x).to(self.weight.dtype) @ self.weight).real


def test_complex_parameters_are_refused_before_training():
    model = Spectral()
    with pytest.raises(ValueError, match="parameter 'weight' is complex"):
        diagonal_fisher(model, [(X, Y)])
    before = model.weight.detach().clone()
    with pytest.raises(ValueError, match="view_as_complex"):
        naive(model, PriorEWCPlugin()).train(labelled_benchmark([(X, Y)]).train_stream[0])
    assert torch.equal(model.weight, before)


def test_frozen_ones_do_no_harm():
    model = Spectral()
    model.weight.requires_grad_(False)
    found = diagonal_fisher(model, [(X, Y)])
    right = loop_fisher(model.first, X, Y, lambda h, y: _nll(model, h, y))
    assert_close(found, {f"first.{n}": v for n, v in right.items()}, rtol=1e-5)


def _nll(model, h, y):
    return nn.functional.cross_entropy((h.to(model.weight.dtype) @ model.weight).real, y)
