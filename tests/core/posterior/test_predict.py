import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from avalanche.models import IncrementalClassifier, MultiHeadClassifier
from torch import nn
from torch.func import functional_call

from avalanche_hnet import (
    Categorical,
    Gaussian,
    GaussianPosterior,
    PriorEWCPlugin,
    RegressionPrediction,
    predict,
)
from avalanche_hnet.core.common.likelihoods import Likelihood
from avalanche_hnet.core.posterior.predict import Predictor
from tests.support.hypernets import adapted, hyper_model
from tests.support.models import Incremental, MultiHead, lenet, mlp
from tests.support.posteriors import CLOSE, moments, outputs_of, posterior_of
from tests.support.strategies import naive
from tests.support.streams import task_stream

pytestmark = pytest.mark.usefixtures("float64")


METHODS = ["linearized", "sample", "map"]


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
    """Frozen parameters, which it is never given."""
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
    """Two layers and all kinds of state; raises once ``calls_left`` calls have been made."""

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
        x = torch.randn(5, 6)
        found = outputs_of(model, plugin.posterior, x, task_label=2)
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
    options = {"n_samples": 400, "generator": generator}
    found = outputs_of(model, plugin.posterior, x, method, **options)
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


@pytest.mark.parametrize("method", METHODS)
def test_tasks_without_a_head_are_refused(method):
    model = MultiHead()
    posterior = posterior_of(model)
    x = torch.randn(2, 6)
    assert predict(model, posterior, x, method, task_label=0).shape == (2, 2)
    with pytest.raises(ValueError, match="task_label is 4, for which MultiHead has no head"):
        predict(model, posterior, x, method, task_label=4)


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
    """Great uncertainty brings back classes that the mean rules out."""
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
