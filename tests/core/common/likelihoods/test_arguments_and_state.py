"""Arguments of likelihoods, what they refuse, and their state."""

import pytest
import torch

from avalanche_hnet import Bernoulli, Categorical, Gaussian, Likelihood
from avalanche_hnet.core.common.likelihoods import likelihood_from_state, likelihood_state
from tests.support.likelihoods import LIKELIHOODS


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Gaussian(0), ValueError, "noise_std must be positive, got 0"),
        (lambda: Gaussian("1"), TypeError, "noise_std must be a positive number"),
        (lambda: Categorical(label_smoothing=1.5), ValueError, r"label_smoothing .* got 1\.5"),
        (lambda: Categorical(label_smoothing=None), TypeError, "label_smoothing .* got None"),
        (lambda: Categorical(ignore_index=0.5), TypeError, "ignore_index must be an integer"),
        (lambda: Categorical(class_weights=[1.0, -1.0]), ValueError, "class_weights .* negative"),
        (lambda: Categorical(class_weights="abc"), TypeError, "class_weights must be a tensor"),
        (lambda: Categorical(class_weights=torch.ones(2, 2)), ValueError, r"shape \(2, 2\)"),
        (lambda: Bernoulli(pos_weight=torch.tensor(float("nan"))), ValueError, "pos_weight .* nan"),
        (lambda: Bernoulli(weight=torch.tensor(-1.0)), ValueError, "weight .* negative"),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("likelihood", "outputs", "targets", "message"),
    [
        (Gaussian(), (6, 1), torch.zeros(6), r"shape \(6,\), but the outputs \(6, 1\)"),
        (Categorical(), (2, 3), torch.tensor([0, -1]), "from 0 to 2.*got -1"),
        (Categorical(), (2, 3), torch.tensor([-100, 3]), "from 0 to 2.*got 3"),
        (Categorical(class_weights=[1, 2]), (2, 3), torch.tensor([0, 1]), "has 2 numbers.*3 outp"),
        (Bernoulli(), (2, 3), torch.zeros(2), r"shape \(2,\), but the outputs \(2, 3\)"),
        (Bernoulli(), (2, 1), torch.tensor([[2.0], [0]]), "from 0 to 1, got 0.0 to 2.0"),
        (Bernoulli(pos_weight=torch.ones(2)), (2, 3), torch.zeros(2, 3), r"pos_weight .* \(3,\)"),
        (Bernoulli(weight=torch.ones(2, 3)), (2, 3), torch.zeros(2, 3), r"weight .* \(2, 3\)"),
    ],
)
def test_targets_that_do_not_fit_are_refused(likelihood, outputs, targets, message):
    with pytest.raises(ValueError, match=message):
        likelihood.nll(torch.zeros(outputs), targets)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_state_makes_the_same_likelihood(name, tmp_path):
    likelihood, shape = LIKELIHOODS[name]
    torch.save(likelihood_state(likelihood), tmp_path / "state.pt")
    restored = likelihood_from_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert type(restored) is type(likelihood)
    assert repr(restored) == repr(likelihood)
    outputs = torch.randn(shape, dtype=torch.float64)
    targets = likelihood.sample(outputs)
    torch.testing.assert_close(restored.nll(outputs, targets), likelihood.nll(outputs, targets))


def test_likelihoods_of_ones_own_have_no_state():
    class Own(Categorical):
        pass

    assert isinstance(Own(), Likelihood)
    assert likelihood_state(Own()) is None
    assert likelihood_from_state(None) is None
    with pytest.raises(ValueError, match="got 'Own'"):
        likelihood_from_state({"kind": "Own", "arguments": {}})
