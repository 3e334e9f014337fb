"""Variances and draws against an explicit Jacobian."""

import copy
import warnings
from itertools import pairwise
from math import pi

import pytest
import torch
from avalanche.models import MultiHeadClassifier
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from avalanche_hnet import BlockMultiHeadClassifier, Gaussian, PriorEWCPlugin, predict
from avalanche_hnet.core.posterior.predict import Predictor
from tests.support.cases import CASES
from tests.support.models import MultiHead
from tests.support.posteriors import CLOSE, moments, outputs_of, posterior_of
from tests.support.strategies import naive
from tests.support.streams import task_stream

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(params=CASES)
def case(request):
    make_model, make_x = CASES[request.param]
    torch.manual_seed(0)
    model, x = make_model(), make_x()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "squared gradients of lstm", UserWarning)
        yield model.train(), x


def test_variances_equal_an_explicit_jacobian(case):
    model, x = case
    posterior = posterior_of(model)
    mean, covariance, _ = moments(model, posterior, x)
    found = predict(model, posterior, x, likelihood=Gaussian(0.2))
    torch.testing.assert_close(found.mean, mean, **CLOSE)
    variance = covariance.diagonal().view_as(mean)
    torch.testing.assert_close(found.epistemic_variance, variance, **CLOSE)
    assert found.epistemic_variance.max() > 0
    probabilities = predict(model, posterior, x)
    expected = (mean / (1 + pi * variance / 8).sqrt()).softmax(1)
    torch.testing.assert_close(probabilities, expected, **CLOSE)


@pytest.mark.parametrize("name", ["mlp", "lenet", "normalisations", "used twice", "tied"])
@given(n_samples=st.integers(1, 8), seed=st.integers(0, 10**6))
@settings(max_examples=5, deadline=None)
def test_variances_of_batches_of_any_size(name, n_samples, seed):
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(seed)
    make_model, make_x = CASES[name]
    model, x = make_model(), make_x()[:n_samples]
    posterior = posterior_of(model, seed=seed)
    mean, covariance, _ = moments(model, posterior, x)
    found = predict(model, posterior, x, likelihood=Gaussian())
    torch.testing.assert_close(found.mean, mean, **CLOSE)
    variance = covariance.diagonal().view_as(mean)
    torch.testing.assert_close(found.epistemic_variance, variance, **CLOSE)


@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=4), st.integers(1, 6), st.integers(0, 10**6)
)
@settings(max_examples=25, deadline=None)
def test_variances_of_networks_of_any_size(sizes, n_samples, seed):
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(seed)
    layers = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.Tanh()]
    model, x = nn.Sequential(*layers), torch.randn(n_samples, sizes[0])
    posterior = posterior_of(model, seed=seed)
    mean, covariance, _ = moments(model, posterior, x)
    found = predict(model, posterior, x, likelihood=Gaussian())
    torch.testing.assert_close(found.mean, mean, **CLOSE)
    variance = covariance.diagonal().view_as(mean)
    torch.testing.assert_close(found.epistemic_variance, variance, **CLOSE)


def test_outputs_with_positions():
    """Class probabilities for each position, (B, C, positions)."""
    model, x = (
        nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Conv1d(3, 4, 1)),
        torch.randn(5, 2, 8),
    )
    posterior = posterior_of(model)
    mean, covariance, _ = moments(model, posterior, x)
    variance = covariance.diagonal().view_as(mean)
    expected = (mean / (1 + pi * variance / 8).sqrt()).softmax(1)
    assert expected.shape == (5, 4, 6)
    torch.testing.assert_close(predict(model, posterior, x), expected, **CLOSE)
    found = predict(model, posterior, x, likelihood=Gaussian())
    torch.testing.assert_close(found.epistemic_variance, variance, **CLOSE)


def heads():
    return {
        "avalanche": MultiHeadClassifier(8, masking=False),
        "avalanche, masked": MultiHeadClassifier(8),
        "blocks": BlockMultiHeadClassifier(8),
    }


@pytest.mark.parametrize("head", heads())
def test_variances_of_each_task(head):
    stream = task_stream(3).train_stream
    model, plugin = MultiHead(heads()[head]), PriorEWCPlugin()
    naive(model, plugin).train(stream)
    x = torch.randn(5, 6)
    for task in range(3):
        mean, covariance, jacobian = moments(model, plugin.posterior, x, task)
        variance = covariance.diagonal().view_as(mean)
        found = outputs_of(model, plugin.posterior, x, task_label=task)
        torch.testing.assert_close(found.mean, mean, **CLOSE)
        torch.testing.assert_close(found.epistemic_variance, variance, **CLOSE)
        expected = (mean / (1 + pi * variance / 8).sqrt()).softmax(1)
        found = predict(model, plugin.posterior, x, task_label=task)
        torch.testing.assert_close(found, expected, **CLOSE)
        assert jacobian.any()


def test_linearized_draws_equal_the_explicit_linearisation(case):
    model, x = case
    posterior = posterior_of(model)
    mean, _, jacobian = moments(model, posterior, x)
    generator = torch.Generator().manual_seed(3)
    draws = [*Predictor(model, posterior, "linearized", None, 3, generator).draws(x)]
    generator = torch.Generator().manual_seed(3)
    assert len(draws) == 3
    for draw in draws:
        drawn = posterior.sample(generator)
        change = torch.cat([(drawn[n] - m).flatten() for n, m in posterior.mean.items()])
        expected = mean + (jacobian @ change).view_as(mean)
        torch.testing.assert_close(draw, expected, **CLOSE)
        assert not torch.allclose(draw, mean)


def test_sampled_draws_equal_the_network_with_those_weights(case):
    model, x = case
    posterior = posterior_of(model)
    generator = torch.Generator().manual_seed(3)
    draws = [*Predictor(model, posterior, "sample", None, 3, generator).draws(x)]
    generator, there = torch.Generator().manual_seed(3), copy.deepcopy(model).eval()
    for draw in draws:
        weights = posterior.sample(generator)
        with torch.no_grad():
            for name, p in there.named_parameters():
                p.copy_(weights[name])
            if isinstance(model[0] if isinstance(model, nn.Sequential) else None, nn.Embedding):
                there[0].weight[0] = posterior.mean["0.weight"][0]  # padding is no weight
            torch.testing.assert_close(draw, there(x), **CLOSE)


def test_linearized_draws_have_the_mean_and_covariance_of_the_predictive():
    """Over all samples of a batch at once: a draw is one and the same network."""
    model, x, n = (
        nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)),
        torch.randn(3, 2),
        3000,
    )
    posterior = posterior_of(model)
    mean, covariance, _ = moments(model, posterior, x)
    generator = torch.Generator().manual_seed(3)
    draws = [*Predictor(model, posterior, "linearized", None, n, generator).draws(x)]
    draws = torch.stack(draws).flatten(1)
    spread = covariance.diagonal()
    assert ((draws.mean(0) - mean.flatten()).abs() < 4.5 * (spread / n).sqrt()).all()
    error = ((spread[:, None] * spread + covariance**2) / n).sqrt()  # of a Gaussian's covariance
    assert ((draws.T.cov() - covariance).abs() < 4.5 * error).all()
    assert (covariance - spread.diag()).abs().max() > 0.1 * spread.max()
