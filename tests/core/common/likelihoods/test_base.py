"""What holds for every likelihood."""

import itertools

import pytest
import torch

from avalanche_hnet import Bernoulli, Categorical
from tests.support.likelihoods import LIKELIHOODS

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_factors_are_the_covariance_of_the_models_own_gradients(name):
    likelihood, shape = LIKELIHOODS[name]
    outputs, n_draws = torch.randn(shape), 40_000
    repeated = outputs[:1].expand(n_draws, *shape[1:]).clone().requires_grad_()
    targets = likelihood.sample(repeated.detach(), torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad(likelihood.nll(repeated, targets).sum(), repeated)[0].flatten(1)
    drawn = gradients.T @ gradients / n_draws
    factors = torch.stack([c[0].flatten() for c in likelihood.fisher_factors(outputs)])
    tolerance = 0.03 * float(drawn.abs().max())
    torch.testing.assert_close(factors.T @ factors, drawn, rtol=0.05, atol=tolerance)


@pytest.mark.parametrize("name", [name for name in LIKELIHOODS if "gaussian" not in name])
def test_factors_are_exact_over_all_labels(name):
    """The expectation, written out over every combination of labels of one sample."""
    likelihood, shape = LIKELIHOODS[name]
    outputs = torch.randn(shape)
    if isinstance(likelihood, Categorical):
        p = outputs[:1].softmax(1).movedim(1, -1).reshape(-1, shape[1])  # (positions, C)
        choices, target_shape = range(shape[1]), (1, *shape[2:])
    else:
        one = outputs[:1].sigmoid().flatten()
        p = torch.stack([1 - one, one], 1)
        choices, target_shape = range(2), (1, *shape[1:])
    expected = 0
    for labels in itertools.product(choices, repeat=len(p)):
        leaf = outputs[:1].clone().requires_grad_()
        targets = torch.tensor(labels).view(target_shape)
        targets = targets if isinstance(likelihood, Categorical) else targets.double()
        (g,) = torch.autograd.grad(likelihood.nll(leaf, targets).sum(), leaf)
        probability = p[torch.arange(len(p)), torch.tensor(labels)].prod()
        expected = expected + probability * torch.outer(g.flatten(), g.flatten())
    factors = torch.stack([c[0].flatten() for c in likelihood.fisher_factors(outputs)])
    found = factors.T @ factors
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_gradients_are_those_of_finite_differences(name):
    likelihood, shape = LIKELIHOODS[name]
    outputs = torch.randn(shape, requires_grad=True)
    targets = likelihood.sample(outputs.detach(), torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(lambda f: likelihood.nll(f, targets), (outputs,))


def test_masked_units_cost_no_factor():
    outputs = torch.tensor([[0.0, -1000.0, 1.0]])
    assert len(list(Categorical().fisher_factors(outputs))) == 2
    assert len(list(Bernoulli().fisher_factors(outputs))) == 2
