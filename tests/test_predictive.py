import copy
import random
import warnings
from itertools import pairwise
from math import pi

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from avalanche.benchmarks import tensors_benchmark
from avalanche.models import IncrementalClassifier, MultiHeadClassifier
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, jacrev
from torch.utils.data import DataLoader, TensorDataset

from avalanche_hnet import (
    BlockMultiHeadClassifier,
    Categorical,
    Gaussian,
    GaussianPosterior,
    PriorEWCPlugin,
    RegressionPrediction,
    predict,
)
from avalanche_hnet.core.common.likelihoods import Likelihood
from avalanche_hnet.core.fisher.output_variance import output_variance
from avalanche_hnet.core.posterior.predict import Predictor
from tests.hypernets import adapted, hyper_model
from tests.models import Incremental, MultiHead, lenet, mlp
from tests.streams import regression_stream, task_stream
from tests.test_fisher import CASES
from tests.test_prior_ewc import naive

pytestmark = pytest.mark.usefixtures("float64")

CLOSE = {"rtol": 1e-9, "atol": 1e-12}
METHODS = ["linearized", "sample", "map"]


def posterior_of(model, prior_variance=0.5, displaced=0.1, seed=5):
    """A random posterior whose mean is not at the model's weights."""
    generator = torch.Generator().manual_seed(seed)
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    moved, fisher, active = {}, {}, {}
    for name, p in parameters.items():
        moved[name] = p + displaced * torch.randn(p.shape, generator=generator).to(p)
        fisher[name] = 3 * torch.rand(p.shape, generator=generator).to(p)
        active[name] = torch.ones(p.shape, dtype=torch.bool)
    posterior = GaussianPosterior(prior_variance)
    posterior.align(dict(model.named_parameters()))
    posterior.update(moved, fisher, 4, active)
    return posterior


def moments(model, posterior, x, *label):
    """f(x, φ*), J Λ⁻¹ Jᵀ (B·U, B·U) and J, by an explicit Jacobian."""
    model = copy.deepcopy(model).eval()

    def outputs(parameters):
        return functional_call(model, parameters, (x, *label))

    jacobian = jacrev(outputs, chunk_size=1)(dict(posterior.mean))
    rows = outputs(dict(posterior.mean)).detach()
    flat = torch.cat([jacobian[n].detach().reshape(rows.numel(), -1) for n in jacobian], 1)
    variances = torch.cat([1 / posterior.precision[n].flatten() for n in jacobian])
    return rows, flat * variances @ flat.T, flat


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


# Variances and draws against an explicit Jacobian.


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
        found = predict(model, plugin.posterior, x, likelihood=Gaussian(), task_label=task)
        torch.testing.assert_close(found.mean, mean, **CLOSE)
        torch.testing.assert_close(found.epistemic_variance, variance, **CLOSE)
        expected = (mean / (1 + pi * variance / 8).sqrt()).softmax(1)
        found = predict(model, plugin.posterior, x, task_label=task)
        torch.testing.assert_close(found, expected, **CLOSE)
        assert jacobian.any()


def test_variance_of_outputs_that_are_not_needed_is_left_at_zero():
    model, x = mlp(), torch.randn(4, 6)
    variances = {n: torch.rand_like(p) for n, p in model.named_parameters()}
    outputs, every = output_variance(model.eval(), variances, x)
    chosen = torch.tensor([True, False, True])
    found = output_variance(model, variances, x, is_needed=lambda _: chosen)
    torch.testing.assert_close(found, (outputs, every * chosen), **CLOSE)
    del variances["0.weight"]  # certain
    _, fewer = output_variance(model, variances, x)
    assert (fewer < every).all()


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


def test_sample_method_equals_a_plain_loop():
    model, x = mlp(), torch.randn(4, 6)
    posterior, generator = posterior_of(model), torch.Generator().manual_seed(3)
    outputs = []
    for _ in range(6):
        weights = {}
        for name, mean in posterior.mean.items():
            noise = torch.randn(mean.shape, generator=generator)
            weights[name] = mean + noise / posterior.precision[name].sqrt()
        outputs.append(functional_call(model, weights, (x,)).detach())
    outputs = torch.stack(outputs)

    def again(**options):
        again = torch.Generator().manual_seed(3)
        return predict(model, posterior, x, "sample", n_samples=6, generator=again, **options)

    torch.testing.assert_close(again(), outputs.softmax(2).mean(0), **CLOSE)
    found = again(likelihood=Gaussian(0.5))
    torch.testing.assert_close(found.mean, outputs.mean(0), **CLOSE)
    expected = ((outputs - outputs.mean(0)) ** 2).mean(0)
    torch.testing.assert_close(found.epistemic_variance, expected, **CLOSE)
    assert (found.noise_variance == 0.25).all()

    torch.manual_seed(3)  # the global generator otherwise
    found = predict(model, posterior, x, "sample", n_samples=6)
    torch.testing.assert_close(found, outputs.softmax(2).mean(0), **CLOSE)


def test_map_is_the_model_at_the_posteriors_mean():
    model, x = lenet(), torch.randn(4, 1, 16, 16)
    posterior = posterior_of(model)
    there = copy.deepcopy(model)
    there.load_state_dict(posterior.mean)
    found = predict(model, posterior, x, "map")
    torch.testing.assert_close(found, there(x).softmax(1).detach(), **CLOSE)
    assert not torch.allclose(found, model(x).softmax(1))
    found = predict(model, posterior, x, "map", likelihood=Gaussian(0.5))
    torch.testing.assert_close(found.mean, there(x).detach(), **CLOSE)
    assert (found.epistemic_variance == 0).all()
    assert (found.noise_variance == 0.25).all()
    assert isinstance(found, RegressionPrediction)


@pytest.mark.parametrize("method", METHODS)
def test_as_the_posterior_becomes_certain_all_methods_become_the_map(method):
    model, x = mlp(), torch.randn(4, 6)
    posterior = posterior_of(model)
    for precision in posterior.precision.values():
        precision.fill_(1e14)
    found = predict(model, posterior, x, method)
    torch.testing.assert_close(found, predict(model, posterior, x, "map"), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_dtype_is_the_models(method):
    model, x = mlp().float(), torch.randn(4, 6).float()
    posterior = posterior_of(model)
    assert predict(model, posterior, x, method).dtype == torch.float32
    found = predict(model, posterior, x, method, likelihood=Gaussian())
    assert {t.dtype for t in found} == {torch.float32}


@pytest.mark.parametrize("method", METHODS)
def test_parameters_that_the_posterior_does_not_know_are_taken_as_they_are(method):
    """Frozen ones, of which it never hears."""
    model = mlp()
    model[0].requires_grad_(False)
    posterior = GaussianPosterior(1e-20)
    posterior.align(dict(model.named_parameters()))
    with torch.no_grad():
        for name in posterior.mean:
            posterior.mean[name].copy_(dict(model.named_parameters())[name])
    assert posterior.mean.keys() == {"2.weight", "2.bias"}
    x = torch.randn(4, 6)
    found = predict(model, posterior, x, method)
    torch.testing.assert_close(found, model(x).softmax(1).detach())
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]


# What is left untouched.


class Fragile(nn.Module):
    """Two layers and all kinds of state; raises in the n-th call from when it is told."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.dropout = nn.Dropout()
        self.calls_left = float("inf")

    def forward(self, x):
        self.calls_left -= 1
        if self.calls_left < 0:
            raise KeyError("broken")
        return self.last(self.dropout(self.norm(self.first(x)).tanh()))


def state(model):
    return (
        [(p.data_ptr(), p.detach().clone(), p.requires_grad) for p in model.parameters()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [b.clone() for b in model.buffers()],
        [m.training for m in model.modules()],
        [len(m._forward_hooks) for m in model.modules()],
        torch.get_rng_state(),
        random.getstate(),
        [*map(str, np.random.get_state())],
        torch.is_grad_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("breaks_at", [0, 1, 3, None])
@pytest.mark.parametrize("likelihood", [Categorical(), Gaussian()], ids=["classes", "real"])
@pytest.mark.parametrize("method", [*METHODS, "draws"])
def test_model_is_left_untouched(method, likelihood, breaks_at):
    model, x = Fragile(), torch.randn(9, 6)
    model(x).sum().backward()
    model.last.eval()
    model.first.bias.requires_grad_(False)
    model.first.weight.grad = None
    posterior = GaussianPosterior()
    posterior.align(dict(model.named_parameters()))
    posterior.mean["last.bias"] += 1
    tensors = ("mean", "precision", "known", "prior_mean")
    kept, x_before = copy.deepcopy([posterior.state_dict()[n] for n in tensors]), x.clone()
    before = state(model)
    generator = torch.Generator().manual_seed(0)

    def run():
        if method == "draws":
            return [*Predictor(model, posterior, "linearized", generator=generator).draws(x)]
        return predict(model, posterior, x, method, likelihood=likelihood, generator=generator)

    if breaks_at is not None:
        model.calls_left = breaks_at
        if method == "map" and breaks_at > 0:
            model.calls_left = 0
        with pytest.raises(KeyError, match="broken"):
            run()
    else:
        found = run()
        assert not any(t.requires_grad for t in (found if isinstance(found, tuple) else [*found]))
    assert same(before, state(model))
    found = [posterior.state_dict()[n] for n in tensors]
    torch.testing.assert_close(found, kept, rtol=0, atol=0)
    assert torch.equal(x, x_before)


@pytest.mark.parametrize("method", METHODS)
def test_training_mode_and_no_grad_around_it_make_no_difference(method):
    model, x = Fragile(), torch.randn(9, 6)
    posterior, found = posterior_of(model), []
    for mode in (True, False):
        for grad in (True, False):
            model.train(mode)
            with torch.set_grad_enabled(grad):
                generator = torch.Generator().manual_seed(0)
                found.append(predict(model, posterior, x, method, generator=generator))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=0, atol=0)


def test_a_draw_that_is_not_taken_leaves_the_model_untouched():
    model, x = Fragile(), torch.randn(9, 6)
    posterior = posterior_of(model)
    draws = Predictor(model, posterior, generator=torch.Generator().manual_seed(0)).draws(x)
    before = state(model)
    next(draws)
    assert same(before, state(model))


# Heads that were never trained, or have grown since.


@pytest.mark.parametrize("prior_mean", ["zero", "initial"])
def test_head_that_was_never_trained_is_at_the_prior(prior_mean):
    """In the model from the start, or added by an evaluation since the last training."""
    for from_the_start in (True, False):
        benchmark = task_stream(3)
        model = MultiHead(MultiHeadClassifier(8, masking=False))
        if from_the_start:
            for experience in benchmark.train_stream:
                model.output["head"].adaptation(experience)
        plugin = PriorEWCPlugin(prior_variance=0.3, prior_mean=prior_mean)
        strategy = naive(model, plugin)
        strategy.train(benchmark.train_stream[:2])
        strategy.eval(benchmark.test_stream)
        name = "output.head.classifiers.2.classifier"
        assert (f"{name}.weight" in plugin.posterior.mean) == from_the_start
        names = set(plugin.posterior.mean)
        x, noise = torch.randn(5, 6), Gaussian()
        found = predict(model, plugin.posterior, x, likelihood=noise, task_label=2)
        features = model.features(x)
        head = model.get_submodule(name)
        mean = head(features) if prior_mean == "initial" else torch.zeros(5, 2)
        torch.testing.assert_close(found.mean, mean.detach(), **CLOSE)
        head_part = 0.3 * (1 + (features**2).sum(1, keepdim=True))
        if prior_mean == "zero":  # then the features do not matter to the mean
            expected = head_part.expand(5, 2).detach()
            torch.testing.assert_close(found.epistemic_variance, expected, **CLOSE)
        else:
            assert (found.epistemic_variance > head_part).all()
        assert set(plugin.posterior.mean) == names


@pytest.mark.parametrize("method", METHODS)
def test_units_that_have_grown_since_are_at_the_prior(method):
    benchmark = task_stream(3, offset=True, task_labels=[0, 0, 0])
    model, plugin = Incremental(), PriorEWCPlugin(prior_variance=0.3)
    model.head = IncrementalClassifier(8, masking=False)
    strategy = naive(model, plugin)
    strategy.train(benchmark.train_stream[0])
    trained = copy.deepcopy(plugin.posterior)
    strategy.eval(benchmark.test_stream)
    assert model.head.classifier.weight.shape == (6, 8)
    x = torch.randn(5, 6)
    generator = torch.Generator().manual_seed(0)
    options = {"likelihood": Gaussian(), "n_samples": 400, "generator": generator}
    found = predict(model, plugin.posterior, x, method, **options)
    head_part = 0.3 * (1 + (model.features(x) ** 2).sum(1, keepdim=True)).expand(5, 4).detach()
    if method == "sample":
        assert (found.mean[:, 2:].abs() < 4.5 * (head_part / 400).sqrt() * 1.5).all()
        assert (found.epistemic_variance[:, 2:] > 0.5 * head_part).all()
    else:
        assert (found.mean[:, 2:] == 0).all()
        expected = head_part if method == "linearized" else torch.zeros_like(head_part)
        torch.testing.assert_close(found.epistemic_variance[:, 2:], expected, **CLOSE)
    if method == "linearized":
        known = {n: trained.mean[n] for n in trained.mean}
        variance = 1 / trained.precision["head.classifier.bias"]
        old = (
            F.linear(model.features(x), known["head.classifier.weight"])
            + known["head.classifier.bias"]
        )
        torch.testing.assert_close(found.mean[:, :2], old.detach(), **CLOSE)
        assert (found.epistemic_variance[:, :2] > variance).all()
    assert plugin.posterior.mean["head.classifier.weight"].shape == (2, 8)


# Errors.


def test_bad_arguments_are_refused():
    model, x = mlp(), torch.randn(2, 6)
    posterior = posterior_of(model)

    class Poisson(Likelihood):
        nll = sample = fisher_factors = criterion_scale = None

        def __repr__(self):
            return "Poisson()"

    for options, error, message in (
        ({"method": "laplace"}, ValueError, r"method must be one of \('map', .*got 'laplace'"),
        ({"n_samples": 0}, ValueError, "n_samples must be at least 1, got 0"),
        ({"n_samples": 2.5}, TypeError, "n_samples must be an integer of at least 1, got 2.5"),
        ({"likelihood": Poisson()}, TypeError, r"likelihood must be .*, got Poisson\(\)"),
        ({"likelihood": "gaussian"}, TypeError, "likelihood must be .*, got 'gaussian'"),
    ):
        with pytest.raises(error, match=message):
            predict(model, posterior, x, **options)
    with pytest.raises(ValueError, match="posterior is empty"):
        predict(model, GaussianPosterior(), x)
    with pytest.raises(ValueError, match=r"posterior holds '2.bias', which the model does not"):
        predict(nn.Sequential(nn.Linear(6, 8)), posterior, x)
    with pytest.raises(ValueError, match=r"posterior of '0.weight' has shape \(8, 6\)"):
        predict(mlp(n_in=7), posterior, torch.randn(2, 7))
    with pytest.raises(ValueError, match="method='map' has no draws"):
        next(Predictor(model, posterior, "map").draws(x))


def test_batch_statistics_are_refused():
    model = nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 2))
    with pytest.raises(ValueError, match="normalises with the statistics of the batch"):
        predict(model, posterior_of(model), torch.randn(3, 6))


def test_draws_of_a_hypernetwork_are_not_taken_from_its_cache():
    """Its linearised outputs have the variance of the explicit Jacobian, after evaluations, too."""
    model = adapted(hyper_model(), task_stream(2).train_stream).eval()
    posterior = posterior_of(model)
    x = torch.randn(3, 6)
    with torch.no_grad():
        for _ in range(2):  # which fills the cache
            model(x, 1)
            predict(model, posterior, x, "map", task_label=1)
    _, covariance, _ = moments(model, posterior, x, 1)
    generator = torch.Generator().manual_seed(0)
    predictor = Predictor(model, posterior, "linearized", 1, 4000, generator)
    draws = torch.stack([*predictor.draws(x)]).flatten(1)
    assert not draws.requires_grad
    torch.testing.assert_close(draws.var(0), covariance.diagonal(), rtol=0.1, atol=1e-6)


def test_unlikely_classes_count_as_much_alone_as_in_a_batch():
    """Great uncertainty brings classes back that the mean rules out."""
    model = nn.Linear(2, 3)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[60.0, 0], [0, 0], [-0.5, 0]]))
        model.bias.zero_()
    posterior = GaussianPosterior(1e4)
    parameters = dict(model.named_parameters())
    posterior.align(parameters)
    active = {n: torch.ones_like(p, dtype=torch.bool) for n, p in parameters.items()}
    posterior.update(parameters, {n: torch.zeros_like(p) for n, p in parameters.items()}, 1, active)
    x = torch.tensor([[2.0, 0.0], [-2.0, 1.0], [0.1, 0.0]])
    together = predict(model, posterior, x)
    alone = torch.cat([predict(model, posterior, row) for row in x.split(1)])
    torch.testing.assert_close(alone, together, **CLOSE)
    assert together[0, 1] > 0.01


@pytest.mark.parametrize("budget", [1, 2**25])
def test_variance_in_pieces_is_the_same(budget, monkeypatch):
    monkeypatch.setattr("avalanche_hnet.core.fisher.output_variance._BUDGET", budget)
    model, x = lenet().eval(), torch.randn(5, 1, 16, 16)
    posterior = posterior_of(model)
    found = predict(model, posterior, x, likelihood=Gaussian())
    _, covariance, _ = moments(model, posterior, x)
    torch.testing.assert_close(found.epistemic_variance.flatten(), covariance.diagonal(), **CLOSE)


class SometimesTwice(nn.Module):
    """Calls a layer again where the first input is large."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.last = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        hidden = self.again(self.first(x).tanh()).tanh()
        if (x[:, 0] > 1).any():
            hidden = torch.where(x[:, :1] > 1, self.again(hidden).tanh(), hidden)
        return self.last(hidden)


def test_layers_that_a_later_batch_calls_twice_are_found():
    model = SometimesTwice()
    posterior = posterior_of(model)
    x = torch.randn(8, 6).clamp(max=0.9)
    x[5:, 0] = 2
    with pytest.warns(UserWarning, match="again.weight are computed one sample at a time"):
        found = predict(model, posterior, x, likelihood=Gaussian())
    _, covariance, _ = moments(model, posterior, x)
    torch.testing.assert_close(found.epistemic_variance.flatten(), covariance.diagonal(), **CLOSE)


def test_empty_batches_have_empty_predictions():
    model = mlp()
    found = predict(model, posterior_of(model), torch.zeros(0, 6))
    assert found.shape == (0, 3)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": 3}, TypeError, "model must be a torch.nn.Module, got 3"),
        ({"posterior": None}, TypeError, "posterior must be a GaussianPosterior.*got None"),
        ({"task_label": "1"}, TypeError, "task_label must be an integer or None, got '1'"),
        ({"task_label": 1}, ValueError, "task_label is 1, but Sequential takes none"),
        ({"model": MultiHead()}, ValueError, "MultiHead takes task labels; say of which task"),
    ],
)
def test_wrong_arguments_are_named(changes, error, message):
    model = mlp()
    arguments = {"model": model, "posterior": posterior_of(model), "x": torch.zeros(2, 6)}
    with pytest.raises(error, match=message):
        predict(**(arguments | changes))
