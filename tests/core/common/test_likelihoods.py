import pytest
import torch
from torch import nn

from avalanche_hnet import Categorical, Gaussian
from avalanche_hnet.core.common.likelihoods import resolve_likelihood

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize(
    ("likelihood", "outputs"),
    [
        (Categorical(), torch.randn(5, 4, dtype=torch.float64)),
        (Categorical(), torch.randn(5, 3, 2, dtype=torch.float64)),
        (Gaussian(0.7), torch.randn(5, 4, dtype=torch.float64)),
        (Gaussian(0.7), torch.randn(5, 2, 3, dtype=torch.float64)),
    ],
)
def test_factors_are_the_covariance_of_the_models_own_gradients(likelihood, outputs):
    outputs = outputs.requires_grad_()
    drawn = torch.zeros(outputs[0].numel(), outputs[0].numel())
    n_draws = 20_000
    repeated = outputs[:1].expand(n_draws, *outputs.shape[1:])
    targets = likelihood.sample(repeated.detach(), torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad(likelihood.nll(repeated, targets).sum(), repeated)[0].flatten(1)
    drawn = gradients.T @ gradients / n_draws
    factors = torch.stack([c[0].flatten() for c in likelihood.fisher_factors(outputs.detach())])
    torch.testing.assert_close(factors.T @ factors, drawn, rtol=0.05, atol=0.03)


def test_masked_classes_cost_no_factor():
    outputs = torch.tensor([[0.0, -1000.0, 1.0]])
    assert len(list(Categorical().fisher_factors(outputs))) == 2


def test_gaussian_nll_and_its_multiple():
    outputs, targets = torch.randn(6, 4), torch.randn(6, 4)
    likelihood = Gaussian(0.3)
    nll = likelihood.nll(outputs, targets)
    torch.testing.assert_close(nll, ((targets - outputs) ** 2).sum(1) / (2 * 0.09))
    criterion = nn.MSELoss()
    scale = likelihood.criterion_scale(criterion, outputs)
    torch.testing.assert_close(criterion(outputs, targets), scale * nll.mean())


def test_class_probabilities_as_targets():
    outputs, targets = torch.randn(6, 4), torch.rand(6, 4).softmax(1)
    torch.testing.assert_close(
        Categorical().nll(outputs, targets), -(targets * outputs.log_softmax(1)).sum(1)
    )


def test_likelihood_follows_from_the_criterion():
    assert isinstance(resolve_likelihood(None, nn.CrossEntropyLoss()), Categorical)
    gaussian = resolve_likelihood(None, nn.MSELoss())
    assert isinstance(gaussian, Gaussian)
    assert gaussian.noise_std == 1.0


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (nn.L1Loss(), "L1Loss"),
        (nn.CrossEntropyLoss(weight=torch.ones(3)), "weight"),
        (nn.CrossEntropyLoss(label_smoothing=0.1), "label_smoothing=0.1"),
        (nn.CrossEntropyLoss(ignore_index=0), "ignore_index=0"),
        (lambda outputs, targets: outputs.sum(), "CrossEntropyLoss or MSELoss"),
    ],
)
def test_other_criteria_are_refused_by_name(criterion, message):
    with pytest.raises(ValueError, match=message) as error:
        resolve_likelihood(None, criterion)
    assert "likelihood=" in str(error.value)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 2, 3)])
def test_criteria_are_the_stated_multiples_of_the_mean_nll(reduction, shape):
    outputs = torch.randn(shape)
    labels = torch.randint(0, 4, (6, *shape[2:]))
    for criterion, likelihood, targets in (
        (nn.CrossEntropyLoss(reduction=reduction), Categorical(), labels),
        (nn.MSELoss(reduction=reduction), Gaussian(0.3), torch.randn(shape)),
    ):
        scale = likelihood.criterion_scale(criterion, outputs)
        mean_nll = likelihood.nll(outputs, targets).mean()
        torch.testing.assert_close(criterion(outputs, targets), scale * mean_nll)


@pytest.mark.parametrize(
    ("likelihood", "criterion", "message"),
    [
        (Gaussian(), nn.CrossEntropyLoss(), "does not go with"),
        (Categorical(), nn.MSELoss(), "does not go with"),
        (None, nn.MSELoss(reduction="none"), "reduction='mean' or 'sum', got 'none'"),
        (Gaussian(), nn.MSELoss(reduction="none"), "got 'none'"),
    ],
)
def test_contradictions_are_refused(likelihood, criterion, message):
    with pytest.raises(ValueError, match=message):
        resolve_likelihood(likelihood, criterion)


def test_a_likelihood_that_is_given_is_taken():
    given = Categorical()
    assert resolve_likelihood(given, nn.CrossEntropyLoss(label_smoothing=0.1)) is given
    assert resolve_likelihood(given, nn.functional.cross_entropy) is given


def test_bad_targets_and_noise_are_refused():
    with pytest.raises(ValueError, match=r"shape \(6, 1\)"):
        Gaussian().nll(torch.zeros(6, 1), torch.zeros(6))
    with pytest.raises(ValueError, match="from 0 to 2"):
        Categorical().nll(torch.zeros(2, 3), torch.tensor([0, -100]))
    with pytest.raises(ValueError, match="noise_std must be positive, got 0"):
        Gaussian(0)
