"""Each head, dynamic module and model of Avalanche with Kronecker products for its layers."""

import pytest
import torch
from torch import nn

from avalanche_hnet import PriorEWCPlugin
from tests.support.avalanche_modules import (
    REFUSED,
    RIGHT,
    padded,
    right,
    squared_gradients,
    stream_of,
)
from tests.support.strategies import naive

pytestmark = pytest.mark.filterwarnings("ignore:the prior adds")


def trained(case, structure):
    torch.manual_seed(0)
    plugin = PriorEWCPlugin(prior_variance=2.0, structure=structure)
    strategy = naive(case["make"](), plugin, *case["plugins"](), lr=0.01, train_mb_size=3)
    at_rest = []
    for number, experience in enumerate(stream_of(case)):
        rows = {
            n: (p.detach().clone(), plugin.posterior.known.get(n))
            for n, p in strategy.model.named_parameters()
        }
        torch.manual_seed(number)
        strategy.train(experience, shuffle=False)
        at_rest.append(rows)
    return strategy, plugin.posterior, at_rest


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_known_and_at_rest_is_as_with_the_diagonal(name):
    strategy, posterior, at_rest = trained(RIGHT[name], "kronecker")
    _, diagonal, _ = trained(RIGHT[name], "diagonal")
    assert posterior.known.keys() == diagonal.known.keys()
    for n, known in diagonal.known.items():
        assert torch.equal(posterior.known[n], known), n
    for n, p in strategy.model.named_parameters():
        assert p.isfinite().all()
        if n in posterior.known and n in at_rest[-1]:
            unknown = ~posterior.known[n][: len(at_rest[-1][n][0])]
            now = p.detach()[: len(unknown)]
            assert torch.equal(now[unknown], at_rest[-1][n][0][unknown]), n
    for layer in posterior._parts.layers.values():
        inputs, outputs = layer.products[0]
        rows = layer.layout.matrices(posterior.known).any(2)
        assert not outputs.diagonal(dim1=1, dim2=2)[~rows].any()
        assert inputs.isfinite().all()


# PNN squeezes the batch dimension of a single sample away.
FLAT = [n for n, c in RIGHT.items() if c["shape"] == (6,) and not n.startswith("PNN")]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", FLAT)
def test_of_single_samples_all_products_are_the_exact_fisher(name):
    """Experiences of one sample each, where A ⊗ G of a layer is gᵀg aᵀa."""
    case = RIGHT[name]
    model, plugin = case["make"](), PriorEWCPlugin(0.0, structure="kronecker", rank=None)
    strategy, expected = naive(model, plugin, *case["plugins"](), lr=0.01), {}
    exact = set()
    for experience in stream_of(case, n_samples=1):
        strategy.train(experience)
        for n, squares in squared_gradients(model, experience).items():
            expected[n] = padded(expected.get(n), squares) + squares
        exact |= {
            n
            for layer, products in plugin.posterior._parts.layers.items()
            for n in products.layout.names
            if isinstance(model.get_submodule(layer), nn.Linear)
        }
    assert exact
    for n in exact:
        precision = plugin.posterior.precision[n]
        data = padded(expected[n], precision)
        torch.testing.assert_close(precision - 1, data, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_training(name):
    model, plugin = REFUSED[name](), PriorEWCPlugin(structure="kronecker")
    parameters = [*model.parameters()] or [nn.Parameter(torch.zeros(1))]
    before = [p.clone() for p in model.parameters()]
    strategy = naive(model, plugin, optimizer=torch.optim.SGD(parameters, 0.1))
    if name == "MlpVAE":
        strategy._criterion = lambda outputs, y: outputs[0].sum()
    with pytest.raises(ValueError, match=r"likelihood|cannot train"):
        strategy.train(stream_of(right(None, False))[0])
    assert not plugin.posterior.mean
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
