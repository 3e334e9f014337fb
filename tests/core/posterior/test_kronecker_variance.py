"""Linearised predictions under a Kronecker-factored posterior, against explicit matrices."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from avalanche_hnet import Gaussian, GaussianPosterior, KroneckerPosterior, TaskInference, predict
from avalanche_hnet.core.fisher.kronecker_layer import layout_of
from avalanche_hnet.core.posterior import rotated_rows
from avalanche_hnet.core.posterior.at_mean import at_mean
from avalanche_hnet.models.predictions_by_task import class_probabilities
from tests.support.kronecker import everything, linearised, random_fisher, trained
from tests.support.models import (
    MultiHead,
    OwnParameter,
    TiedWeights,
    TwiceUsed,
    WeightUsedOutsideItsLayer,
    lenet,
    mlp,
)
from tests.support.posteriors import CLOSE
from tests.support.streams import adapt, task_stream

pytestmark = pytest.mark.usefixtures("float64")


class Sequence(nn.Module):
    """Embedding, attention-free mixing of tokens, a norm and a linear layer on a sequence."""

    def __init__(self, **options):
        super().__init__()
        self.embedding = nn.Embedding(9, 4, **options)
        self.norm, self.layer, self.head = nn.LayerNorm(4), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.layer(self.norm(self.embedding(x))).tanh().mean(1))


def grouped():
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 16, 2)
    )


CASES = {
    "mlp": (mlp, lambda: torch.randn(5, 6)),
    "no bias": (lambda: nn.Linear(6, 3, bias=False), lambda: torch.randn(5, 6)),
    "cnn": (lenet, lambda: torch.randn(5, 1, 16, 16)),
    "groups": (grouped, lambda: torch.randn(5, 4, 4, 4)),
    "sequence": (Sequence, lambda: torch.randint(0, 9, (5, 6))),
    "padding": (lambda: Sequence(padding_idx=3), lambda: torch.randint(0, 9, (5, 6))),
    "frequencies": (
        lambda: Sequence(scale_grad_by_freq=True),
        lambda: torch.randint(0, 9, (5, 6)),
    ),
    "twice": (TwiceUsed, lambda: torch.randn(5, 6)),
    "tied": (TiedWeights, lambda: torch.randint(0, 12, (5, 4))),
    "outside": (WeightUsedOutsideItsLayer, lambda: torch.randn(5, 6)),
    "parameter": (OwnParameter, lambda: torch.randn(5, 6)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("n_experiences", [1, 2])
def test_equals_explicit_matrices(case, n_experiences):
    make, inputs = CASES[case]
    model = make().eval()
    outputs = model(inputs())
    batches = [(inputs(), torch.randn_like(outputs)) for _ in range(n_experiences)]
    posterior = trained(model, batches)
    x = inputs()
    expected, variance = linearised(model, posterior, x)
    with at_mean(model, posterior):
        found = posterior.output_variance(model, x)
    torch.testing.assert_close(found[0], expected, **CLOSE)
    torch.testing.assert_close(found[1], variance, **CLOSE)


def with_products(model, seed=3):
    """A posterior with products for all layers, whatever their rules are worth in the model."""
    parameters = dict(model.named_parameters())
    layouts = {
        name: layout
        for name, module in model.named_modules()
        if (layout := layout_of(name, module, parameters)) is not None
    }
    posterior = KroneckerPosterior(0.5)
    fisher = random_fisher(layouts, parameters, seed)
    posterior.update(parameters, fisher, 7, everything(parameters))
    assert posterior.covariances().keys() == layouts.keys()
    return posterior


class InOwnWay(nn.Linear):
    """Of a class that has no rule."""

    def forward(self, x):
        return super().forward(2 * x)


class TableTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.last = nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last((self.table(x) * self.table(x.flip(1))).sum(1))


class WithoutVmap(TwiceUsed):
    """Looks at numbers, which vmap cannot."""

    def forward(self, x):
        return super().forward(x if float(x.detach().sum()) > 0 else 2 * x)


class SomeUnused(nn.Module):
    """Some samples' outputs do not depend on the layer that is used twice."""

    def __init__(self):
        super().__init__()
        self.twice, self.last = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        if len(x) == 1 and float(x.detach().sum()) > 0:
            return self.last(x)
        uses = (x.sum(1, keepdim=True) <= 0).to(x)
        return self.last(uses * self.twice(self.twice(x).tanh()) + (1 - uses) * x)


WITHOUT_RULES = {
    "no vmap": (WithoutVmap, lambda: torch.rand(5, 6) + 0.1),
    "some unused": (SomeUnused, lambda: torch.randn(7, 6)),
    "twice": (TwiceUsed, lambda: torch.randn(5, 6)),
    "outside": (WeightUsedOutsideItsLayer, lambda: torch.randn(5, 6)),
    "no rule": (
        lambda: nn.Sequential(InOwnWay(6, 4), nn.Tanh(), nn.Linear(4, 2)),
        lambda: torch.randn(5, 6),
    ),
    "table twice": (TableTwice, lambda: torch.randint(0, 9, (5, 6))),
}


@pytest.mark.parametrize("case", WITHOUT_RULES)
def test_layers_whose_rules_do_not_hold_are_done_by_single_samples(case):
    make, inputs = WITHOUT_RULES[case]
    model, x = make().eval(), inputs()
    posterior = with_products(model)
    expected, variance = linearised(model, posterior, x)
    with at_mean(model, posterior):
        found = posterior.output_variance(model, x)
    torch.testing.assert_close(found[0], expected, **CLOSE)
    torch.testing.assert_close(found[1], variance, **CLOSE)


@pytest.mark.parametrize("case", ["mlp", "cnn", "groups", "sequence", "twice"])
def test_memory_is_bounded_without_changing_the_result(case, monkeypatch):
    make, inputs = CASES[case]
    model, x = make().eval(), inputs()
    posterior = with_products(model)
    with at_mean(model, posterior):
        expected = posterior.output_variance(model, x)
        monkeypatch.setattr("avalanche_hnet.core.fisher.output_variance._BUDGET", 1)
        monkeypatch.setattr(rotated_rows, "_BUDGET", 1)
        found = posterior.output_variance(model, x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", [KroneckerPosterior, GaussianPosterior])
@pytest.mark.parametrize("frozen", ["all", "0.weight", "0.bias", "0.", "2."])
def test_frozen_parameters_are_as_uncertain_as_they_were(kind, frozen):
    """Nobody differentiates a model that is only asked for predictions."""
    model, x = mlp(), torch.randn(5, 6)
    posterior = kind(0.5)
    posterior.align(dict(model.named_parameters()))
    fisher = posterior.fisher(model, [(torch.randn(9, 6), torch.randint(0, 3, (9,)))])
    parameters = dict(model.named_parameters())
    posterior.update(parameters, fisher, 9, everything(parameters))
    expected = posterior.output_variance(model, x)
    chosen = {n: frozen == "all" or n.startswith(frozen) for n in parameters}
    for name, parameter in parameters.items():
        parameter.requires_grad_(not chosen[name])
    found = posterior.output_variance(model, x)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert {n: not p.requires_grad for n, p in parameters.items()} == chosen


class DropsDimensions(nn.Sequential):
    def forward(self, x):
        return super().forward(x).squeeze(0)


@pytest.mark.parametrize("n_samples", [1, 5])
def test_nothing_is_differentiated_for_parameters_of_no_layer_if_there_are_none(
    n_samples, monkeypatch
):
    network, x = mlp(), torch.randn(n_samples, 6)
    model = DropsDimensions(*network)
    posterior = with_products(model)
    expected, variance = linearised(network, posterior, x)
    monkeypatch.setattr("avalanche_hnet.core.fisher.output_variance.SquaredGradients", None)
    with at_mean(model, posterior):
        found = posterior.output_variance(model, x)
    torch.testing.assert_close(found, (expected, variance), **CLOSE)


def test_units_that_are_not_needed_are_left_at_zero():
    model, x = mlp(), torch.randn(5, 6)
    posterior = with_products(model)
    with at_mean(model, posterior):
        _, full = posterior.output_variance(model, x)
        _, some = posterior.output_variance(
            model, x, None, lambda outputs: torch.tensor([True, False, True])
        )
        outputs, nothing = posterior.output_variance(model, x[:0])
    torch.testing.assert_close(some, full * torch.tensor([1.0, 0.0, 1.0]))
    assert outputs.shape == nothing.shape == (0, 3)


# Through the functions that users call.


def test_predictions_take_the_posterior():
    model, x = mlp(), torch.randn(5, 6)
    posterior = with_products(model)
    mean, variance = linearised(model, posterior, x)
    found = predict(model, posterior, x, likelihood=Gaussian(0.3))
    torch.testing.assert_close(found.mean, mean, **CLOSE)
    torch.testing.assert_close(found.epistemic_variance, variance, **CLOSE)
    probabilities = (mean / (1 + torch.pi / 8 * variance).sqrt()).softmax(1)
    torch.testing.assert_close(predict(model, posterior, x), probabilities, **CLOSE)
    drawn = predict(model, posterior, x, "sample", n_samples=3)
    torch.testing.assert_close(drawn.sum(1), torch.ones(5))
    torch.testing.assert_close(predict(model, posterior, x, "map"), mean.softmax(1), **CLOSE)


def test_linear_models_have_the_same_moments_by_draws():
    model, x = nn.Linear(6, 2), torch.randn(4, 6)
    posterior = with_products(model)
    generator = torch.Generator().manual_seed(0)
    options = {"likelihood": Gaussian(0.3), "n_samples": 4000, "generator": generator}
    drawn = predict(model, posterior, x, "sample", **options)
    exact = predict(model, posterior, x, likelihood=Gaussian(0.3))
    torch.testing.assert_close(
        drawn.epistemic_variance, exact.epistemic_variance, rtol=0.15, atol=0
    )


def test_task_inference_takes_the_posterior_and_heads_to_come_are_at_the_prior():
    model, stream = MultiHead(), task_stream(2).train_stream
    adapt(model, stream[0])
    posterior = with_products(model)
    adapt(model, stream[1])
    x = torch.randn(5, 6)
    aligned = copy.copy(posterior)
    aligned.align(dict(model.named_parameters()))
    entropies = []
    for task in (0, 1):
        mean, variance = linearised(model, aligned, x, task)
        p = (mean / (1 + torch.pi / 8 * variance).sqrt()).softmax(1)
        entropies.append(-(p * p.log()).sum(1))
    inference = TaskInference(model, posterior=posterior, tasks=[0, 1])
    found = torch.stack(
        [p.double() for p in class_probabilities(model, inference.options, x, [0, 1])]
    )
    torch.testing.assert_close(-(found * found.log()).sum(2), torch.stack(entropies), **CLOSE)
    agreement = TaskInference(model, "agreement", posterior=posterior, tasks=[0, 1], n_samples=3)
    assert agreement(x).isfinite().all()
    assert not any("classifiers.1" in name for name in posterior.mean)  # left as it was


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types_come_close(dtype):
    model, x = mlp(), torch.randn(5, 6)
    posterior = with_products(model)
    with at_mean(model, posterior):
        expected = posterior.output_variance(model, x)
    model = model.to(dtype)
    posterior.align(dict(model.named_parameters()))
    with at_mean(model, posterior):
        found = posterior.output_variance(model, x.to(dtype))
    assert {t.dtype for t in found} == {dtype}
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)


# Another implementation of the same.


@pytest.mark.parametrize("network", ["mlp", "cnn"])
@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_predictive_equals_that_of_laplaces_kronecker_posterior(network, kind):
    laplace = pytest.importorskip("laplace")
    if network == "mlp":
        model, shape = (
            nn.Sequential(nn.Linear(6, 8, False), nn.Tanh(), nn.Linear(8, 3, False)),
            (6,),
        )
    else:
        shape = (1, 6, 6)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3, bias=False)
        )
    x, y = torch.randn(9, *shape), torch.randn(9, 3)
    if kind == "classification":
        y = torch.arange(9) % 3
    theirs = laplace.KronLaplace(model, kind, prior_precision=2.0, sigma_noise=1.0)
    theirs.fit(DataLoader(TensorDataset(x, y), batch_size=9))
    posterior, parameters = KroneckerPosterior(0.5), dict(model.named_parameters())
    posterior.align(parameters)
    fisher = posterior.fisher(model, [(x, y)], kind="exact")
    posterior.update(parameters, fisher, 9, everything(parameters))
    x = torch.randn(7, *shape)
    if kind == "classification":
        expected = theirs(x, pred_type="glm", link_approx="probit")
        found = predict(model, posterior, x)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    else:
        mean, covariance = theirs(x, pred_type="glm")
        found = predict(model, posterior, x, likelihood=Gaussian())
        torch.testing.assert_close(found.mean, mean, rtol=1e-8, atol=1e-8)
        variance = covariance.diagonal(dim1=1, dim2=2)
        torch.testing.assert_close(found.epistemic_variance, variance, rtol=1e-8, atol=1e-8)
