"""Predictions against other implementations and closed forms."""

import pytest
import torch
from avalanche.benchmarks import tensors_benchmark
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from avalanche_hnet import Gaussian, GaussianPosterior, PriorEWCPlugin, predict
from tests.support.models import lenet, mlp
from tests.support.posteriors import CLOSE, posterior_of
from tests.support.strategies import naive
from tests.support.streams import regression_stream

pytestmark = pytest.mark.usefixtures("float64")


# Other implementations of the same.


@pytest.fixture(scope="module")
def diag_laplace():
    return pytest.importorskip("laplace").DiagLaplace


NETWORKS = {"mlp": (mlp, (6,)), "cnn": (lenet, (1, 16, 16))}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_predictive_of_laplaces_posterior_equals_laplaces(diag_laplace, network, kind):
    make, shape = NETWORKS[network]
    model, x = make(), torch.randn(9, *shape)
    y = torch.randn(9, 3) if kind == "regression" else torch.arange(9) % 3
    theirs = diag_laplace(model, kind, prior_precision=2.0, sigma_noise=1.0)
    theirs.fit(DataLoader(TensorDataset(x, y), batch_size=4))
    parameters = dict(model.named_parameters())
    fisher = theirs.H.split([p.numel() for p in parameters.values()])
    posterior = GaussianPosterior(prior_variance=0.5)
    posterior.update(
        parameters,
        {n: f.view_as(p) for (n, p), f in zip(parameters.items(), fisher, strict=True)},
        1,
        {n: torch.ones_like(p, dtype=torch.bool) for n, p in parameters.items()},
    )
    compare(theirs, model, posterior, torch.randn(7, *shape), kind, 1.0)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_predictive_after_training_equals_that_of_laplace_on_the_same_posterior(
    diag_laplace, network, kind
):
    make, shape = NETWORKS[network]
    model, noise = make(), 0.3 if kind == "regression" else 1.0
    plugin, x = PriorEWCPlugin(5.0), torch.randn(20, *shape)
    if kind == "regression":
        plugin = PriorEWCPlugin(5.0, likelihood=Gaussian(noise))
        stream = regression_stream([(x, torch.randn(20, 3)), (x + 1, torch.randn(20, 3))])
        criterion = nn.MSELoss()
    else:
        stream, criterion = class_stream(x), nn.CrossEntropyLoss()
    strategy = naive(model, plugin, criterion=criterion, lr=0.01)
    for experience in stream.train_stream:
        strategy.train(experience)
    theirs = diag_laplace(model, kind, prior_precision=1.0, sigma_noise=noise)
    precision = plugin.posterior.precision
    flat = torch.cat([precision[n].flatten() for n, _ in model.named_parameters()])
    theirs.H = (flat - 1) * (noise**2 if kind == "regression" else 1)
    theirs.mean = nn.utils.parameters_to_vector(model.parameters()).detach()
    theirs.n_outputs = 3
    theirs.model.eval()
    compare(theirs, model, plugin.posterior, torch.randn(7, *shape), kind, noise)


def class_stream(x):
    data = [(x, torch.arange(len(x)) % 3), (x + 1, torch.arange(len(x)) % 3)]
    return tensors_benchmark(train_tensors=data, test_tensors=data, task_labels=[0, 0])


def compare(theirs, model, posterior, x, kind, noise):
    expected = theirs(x, pred_type="glm", link_approx="probit")
    if kind == "classification":
        torch.testing.assert_close(predict(model, posterior, x), expected, rtol=1e-8, atol=1e-8)
        return
    found = predict(model, posterior, x, likelihood=Gaussian(noise))
    mean, covariance = expected
    torch.testing.assert_close(found.mean, mean, rtol=1e-8, atol=1e-8)
    variance = covariance.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(found.epistemic_variance, variance, rtol=1e-8, atol=1e-8)
    assert (found.noise_variance == noise**2).all()
    assert torch.equal(found.variance, found.epistemic_variance + found.noise_variance)


# Closed forms.


@given(
    st.integers(1, 6), st.integers(1, 4), st.integers(1, 5), st.booleans(), st.integers(0, 10**6)
)
@settings(max_examples=25, deadline=None)
def test_linear_gaussian_predictive_is_exact(n_in, n_out, n_samples, bias, seed):
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.float64)
    model, x, noise = nn.Linear(n_in, n_out, bias), torch.randn(n_samples, n_in), 0.7
    posterior = posterior_of(model, seed=seed)
    found = predict(model, posterior, x, likelihood=Gaussian(noise))
    mean = x @ posterior.mean["weight"].T
    variance = x**2 @ (1 / posterior.precision["weight"]).T
    if bias:
        mean, variance = mean + posterior.mean["bias"], variance + 1 / posterior.precision["bias"]
    torch.testing.assert_close(found.mean, mean, **CLOSE)
    torch.testing.assert_close(found.epistemic_variance, variance, **CLOSE)
    torch.testing.assert_close(found.variance, variance + noise**2, **CLOSE)


def test_after_training_it_is_that_of_exact_bayesian_linear_regression():
    """With orthogonal features, where the exact posterior is diagonal; three experiences."""
    noise, variance, n, d = 0.3, 2.0, 16, 4
    truth, data = torch.randn(d), []
    for scale in (1.0, 0.5, 1.5):
        x = scale * torch.linalg.qr(torch.randn(n, d))[0] * n**0.5 * torch.linspace(0.8, 1.2, d)
        data.append((x, (x @ truth + noise * torch.randn(n))[:, None]))
    model = nn.Linear(d, 1, bias=False)
    plugin = PriorEWCPlugin(prior_variance=variance, fisher="exact", likelihood=Gaussian(noise))
    strategy = naive(
        model, plugin, criterion=nn.MSELoss(), lr=0.05, train_mb_size=n, train_epochs=500
    )
    x_test = torch.randn(6, d)
    for number, experience in enumerate(regression_stream(data).train_stream):
        strategy.train(experience)
        x, y = (torch.cat([pair[i] for pair in data[: number + 1]]) for i in (0, 1))
        precision = torch.eye(d) / variance + x.T @ x / noise**2
        mean = torch.linalg.solve(precision, x.T @ y / noise**2)
        found = predict(model, plugin.posterior, x_test, likelihood=Gaussian(noise))
        exact = (x_test @ precision.inverse() * x_test).sum(1, keepdim=True)
        torch.testing.assert_close(found.mean, x_test @ mean, rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(found.epistemic_variance, exact, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(found.variance, exact + noise**2, rtol=1e-8, atol=1e-12)


def test_epistemic_variance_shrinks_with_data_and_grows_away_from_it():
    model = mlp()
    few, many = posterior_of(model, displaced=0), posterior_of(model, displaced=0)
    for precision in many.precision.values():
        precision *= 10
    x = torch.randn(5, 6)
    found = [predict(model, p, x, likelihood=Gaussian()).epistemic_variance for p in (few, many)]
    torch.testing.assert_close(found[0], 10 * found[1], **CLOSE)
    linear = nn.Linear(6, 1)
    near, far = (
        predict(linear, posterior_of(linear), s * x, likelihood=Gaussian()) for s in (1, 3)
    )
    assert (far.epistemic_variance > near.epistemic_variance).all()
