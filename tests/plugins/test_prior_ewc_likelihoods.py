"""Prior-focused EWC under every likelihood: loss and posterior against single samples."""

import pytest
import torch
from torch import nn

from avalanche_hnet import (
    Bernoulli,
    Categorical,
    Gaussian,
    GaussianPosterior,
    PriorEWCPlugin,
    TaskInference,
    TaskInferencePlugin,
    predict,
)
from tests.support.likelihoods import CASES, single_losses
from tests.support.models import mlp
from tests.support.posteriors import moments, posterior_of
from tests.support.strategies import Recorder, naive
from tests.support.streams import labelled_benchmark

pytestmark = pytest.mark.usefixtures("float64")


def network(shape):
    size = torch.Size(shape[1:])
    if not size:
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1), nn.Flatten(0))
    layers = nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, size.numel())
    return nn.Sequential(*layers, nn.Unflatten(1, size))


def trained(case, **options):
    """A network after one experience in one batch, and what was recorded."""
    criterion, arguments, shape, make_targets = CASES[case]
    x, targets = torch.randn(shape[0], 6), make_targets()
    model, plugin, recorder = network(shape), PriorEWCPlugin(prior_variance=0.5), Recorder()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    strategy = naive(
        model,
        plugin,
        recorder,
        criterion=criterion(**arguments, **options),
        train_mb_size=len(x),
        train_epochs=1,
    )
    strategy.train(labelled_benchmark([(x, targets)]).train_stream[0], shuffle=False)
    return model, plugin, recorder, start, x, targets


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("case", CASES)
def test_the_loss_is_a_multiple_of_the_objective(case, reduction):
    """Loss = c · [Σ NLL + prior] with one c, of whatever the criterion divides by."""
    criterion, arguments, *_ = CASES[case]
    model, _, recorder, start, x, targets = trained(case, reduction=reduction)
    model.load_state_dict(start)
    total = single_losses(criterion, arguments, model(x), targets).sum().item()
    task_loss = criterion(**arguments, reduction=reduction)(model(x), targets).item()
    squares = sum(p.square().sum().item() for p in start.values())
    prior = squares / (2 * 0.5)
    nll = total / 2 if criterion is nn.MSELoss else total
    expected = task_loss / nll * (nll + prior)
    assert recorder.losses[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_the_precision_is_the_priors_and_the_squares_of_single_samples(case):
    criterion, arguments, _, _ = CASES[case]
    model, plugin, _, _, x, targets = trained(case)
    parameters = dict(model.named_parameters())
    expected = {n: torch.full_like(p, 2.0) for n, p in parameters.items()}
    losses = single_losses(criterion, arguments, model(x), targets)
    for loss in losses / 2 if criterion is nn.MSELoss else losses:
        gradients = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            expected[name] += gradient**2
    for name, precision in plugin.posterior.precision.items():
        torch.testing.assert_close(precision, expected[name], rtol=1e-9, atol=1e-12)


def test_padding_does_not_matter_to_loss_or_posterior():
    """Neither what stands at positions that are ignored, nor how many there are."""
    x, labels = torch.randn(6, 4), torch.randint(0, 3, (6, 2))
    found = []
    for n_padding in (0, 1, 5):
        targets = torch.cat([labels, torch.full((6, n_padding), -100)], 1)
        tokens = torch.cat([torch.zeros(6, 2, 4), torch.randn(6, n_padding, 4)], 1) + x[:, None]
        torch.manual_seed(3)

        class PerToken(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(4, 3)

            def forward(self, tokens):
                return self.layer(tokens).transpose(1, 2)

        plugin = PriorEWCPlugin()
        strategy = naive(PerToken(), plugin, train_mb_size=2)
        strategy.train(labelled_benchmark([(tokens, targets)]).train_stream[0], shuffle=False)
        found.append(plugin.posterior)
    for other in found[1:]:
        for name, mean in found[0].mean.items():
            torch.testing.assert_close(other.mean[name], mean)
            torch.testing.assert_close(other.precision[name], found[0].precision[name])


@pytest.mark.parametrize(
    ("case", "kind"),
    [("labels", Categorical), ("numbers", Gaussian), ("multi-label", Bernoulli)],
)
def test_the_posterior_remembers_its_likelihood(case, kind, tmp_path):
    model, plugin, _, _, x, _ = trained(case)
    torch.save(plugin.posterior.state_dict(), tmp_path / "posterior.pt")
    restored = GaussianPosterior(0.5)
    restored.load_state_dict(torch.load(tmp_path / "posterior.pt", weights_only=True))
    assert type(restored.likelihood) is kind
    mean, covariance, _ = moments(model, restored, x)
    variance = covariance.diagonal().view_as(mean)
    found = predict(model, restored, x)
    logits = mean / (1 + torch.pi / 8 * variance).sqrt()
    if kind is Gaussian:
        torch.testing.assert_close(found.mean, mean)
        torch.testing.assert_close(found.epistemic_variance, variance)
    else:
        torch.testing.assert_close(
            found, logits.sigmoid() if kind is Bernoulli else logits.softmax(1)
        )
    for other in (Categorical(), Gaussian(0.3), Bernoulli()):
        if type(other) is not kind or kind is Gaussian:
            with pytest.raises(ValueError, match=f"was learned with {kind.__name__}"):
                predict(model, restored, x, likelihood=other)


def test_a_state_of_before_likelihoods_were_remembered_is_loaded():
    model, plugin, *_, x, _ = trained("numbers")
    state = plugin.posterior.state_dict()
    del state["likelihood"], state["checksums"]
    posterior = GaussianPosterior(0.5)
    posterior.load_state_dict(state)
    assert posterior.likelihood is None
    assert predict(model, posterior, x, likelihood=Gaussian(0.3)).noise_variance[0, 0] == 0.09


@pytest.mark.parametrize("method", ["map", "sample"])
def test_yes_or_no_is_predicted_by_every_method(method):
    model = mlp(n_out=1).double()
    posterior, x = posterior_of(model), torch.randn(3, 6)
    found = predict(model, posterior, x, method, likelihood=Bernoulli())
    assert found.shape == (3, 1)
    if method == "map":
        torch.testing.assert_close(found, moments(model, posterior, x)[0].sigmoid())
        return
    generator = torch.Generator().manual_seed(torch.initial_seed())
    draws = []
    for _ in range(30):
        draw = posterior.sample(generator)
        draws.append(torch.func.functional_call(model.eval(), draw, x).sigmoid())
    torch.testing.assert_close(found, sum(draws) / 30)


def test_task_inference_refuses_yes_or_no():
    model, plugin, *_ = trained("multi-label")
    message = "task inference judges .* Bernoulli"
    with pytest.raises(ValueError, match=message):
        TaskInference(model, posterior=plugin.posterior)
    targets = torch.zeros(4, 2)
    strategy = naive(mlp(n_out=2), TaskInferencePlugin(), criterion=nn.BCEWithLogitsLoss())
    (experience,) = labelled_benchmark([(torch.randn(4, 6), targets)]).train_stream
    with pytest.raises(ValueError, match=message):
        strategy.train(experience)


def test_regressions_are_inferred_by_the_posteriors_likelihood():
    _, plugin, *_ = trained("numbers")
    inference = TaskInference(nn.Linear(6, 4), posterior=plugin.posterior)
    assert repr(inference.options.likelihood) == "Gaussian(noise_std=1.0)"
    with pytest.raises(ValueError, match="was learned with Gaussian"):
        TaskInference(nn.Linear(6, 4), posterior=plugin.posterior, likelihood=Categorical())
