"""The likelihood that a criterion stands for, and the multiple of it that the criterion is."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from avalanche_hnet import Bernoulli, Categorical, Gaussian
from avalanche_hnet.core.common.likelihoods import likelihood_of, resolve_likelihood
from tests.support.likelihoods import CASES, WEIGHTS, single_losses

pytestmark = pytest.mark.usefixtures("float64")

FUNCTIONS = {
    nn.CrossEntropyLoss: F.cross_entropy,
    nn.MSELoss: F.mse_loss,
    nn.BCEWithLogitsLoss: F.binary_cross_entropy_with_logits,
    nn.NLLLoss: F.nll_loss,
}


@pytest.mark.parametrize("case", CASES)
def test_the_nll_is_the_loss_of_single_samples(case):
    criterion, options, shape, make_targets = CASES[case]
    outputs, targets = torch.randn(shape), make_targets()
    likelihood = resolve_likelihood(None, criterion(**options))
    expected = single_losses(criterion, options, outputs, targets)
    factor = 0.5 if criterion is nn.MSELoss else 1.0  # ‖·‖² / 2 for a noise of one
    torch.testing.assert_close(likelihood.nll(outputs, targets), factor * expected)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("case", CASES)
def test_criteria_are_the_stated_multiples_of_the_mean_nll(case, reduction):
    criterion, options, shape, make_targets = CASES[case]
    outputs, targets = torch.randn(shape), make_targets()
    loss = criterion(**options, reduction=reduction)
    likelihood = resolve_likelihood(None, loss)
    mean_nll = likelihood.nll(outputs, targets).mean()
    scale = likelihood.criterion_scale(loss, outputs, targets)
    torch.testing.assert_close(loss(outputs, targets), scale * mean_nll)


@settings(max_examples=60, deadline=None)
@given(
    smoothing=st.floats(0, 1),
    weights=st.one_of(st.none(), st.lists(st.floats(0.1, 5), min_size=3, max_size=3)),
    labels=st.lists(st.sampled_from([-7, 0, 1, 2]), min_size=12, max_size=12).filter(
        lambda labels: any(label >= 0 for label in labels)
    ),
    reduction=st.sampled_from(["mean", "sum"]),
)
def test_any_cross_entropy_is_a_multiple_of_the_mean_nll(smoothing, weights, labels, reduction):
    torch.set_default_dtype(torch.float64)
    outputs, targets = torch.randn(4, 3, 3), torch.tensor(labels).view(4, 3)
    loss = nn.CrossEntropyLoss(
        None if weights is None else torch.tensor(weights),
        label_smoothing=smoothing,
        ignore_index=-7,
        reduction=reduction,
    )
    likelihood = likelihood_of(loss)
    scale = likelihood.criterion_scale(loss, outputs, targets)
    expected = scale * likelihood.nll(outputs, targets).mean()
    torch.testing.assert_close(loss(outputs, targets), expected)


@pytest.mark.parametrize("case", ["labels", "numbers", "multi-label", "padding"])
def test_functions_are_read_like_their_classes(case):
    criterion, options, shape, make_targets = CASES[case]
    outputs, targets = torch.randn(shape), make_targets()
    function = FUNCTIONS[criterion]
    for loss in (function, partial(function, reduction="sum")):
        likelihood = resolve_likelihood(None, loss)
        assert repr(likelihood) == repr(resolve_likelihood(None, criterion(**options)))
        scale = likelihood.criterion_scale(loss, outputs, targets)
        expected = scale * likelihood.nll(outputs, targets).mean()
        torch.testing.assert_close(loss(outputs, targets), expected)


@pytest.mark.parametrize("loss", [nn.NLLLoss(), F.nll_loss, nn.NLLLoss(WEIGHTS[:3])])
def test_log_probabilities_are_logits(loss):
    outputs, targets = torch.randn(6, 3).log_softmax(1), torch.arange(6) % 3
    likelihood = resolve_likelihood(None, loss)
    scale = likelihood.criterion_scale(loss, outputs, targets)
    mean_nll = likelihood.nll(outputs, targets).mean()
    torch.testing.assert_close(loss(outputs, targets), scale * mean_nll)


def test_options_become_those_of_the_likelihood():
    weight = torch.tensor([1.0, 2.0])
    read = likelihood_of(nn.CrossEntropyLoss(weight, label_smoothing=0.1, ignore_index=7))
    assert repr(read) == (
        "Categorical(class_weights=[1.0, 2.0], label_smoothing=0.1, ignore_index=7)"
    )
    assert repr(likelihood_of(nn.CrossEntropyLoss())) == "Categorical()"
    assert repr(likelihood_of(nn.MSELoss())) == "Gaussian(noise_std=1.0)"
    assert repr(likelihood_of(nn.BCEWithLogitsLoss(pos_weight=weight))) == (
        "Bernoulli(pos_weight=[1.0, 2.0])"
    )
    assert likelihood_of(nn.L1Loss()) is None


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (nn.L1Loss(), "L1Loss"),
        (nn.BCELoss(), "BCELoss.*use BCEWithLogitsLoss on logits"),
        (nn.KLDivLoss(), "KLDivLoss"),
        (lambda outputs, targets: outputs.sum(), "CrossEntropyLoss, NLLLoss, MSELoss or BCE"),
    ],
)
def test_other_criteria_are_refused_by_name(criterion, message):
    with pytest.raises(ValueError, match=message) as error:
        resolve_likelihood(None, criterion)
    assert "likelihood=" in str(error.value)


@pytest.mark.parametrize(
    ("likelihood", "criterion", "message"),
    [
        (Gaussian(), nn.CrossEntropyLoss(), "does not go with"),
        (Gaussian(), F.cross_entropy, "does not go with"),
        (Gaussian(), nn.NLLLoss(), "does not go with"),
        (Gaussian(), nn.BCEWithLogitsLoss(), r"does not go with.*read as Bernoulli\(\)"),
        (Categorical(), nn.BCEWithLogitsLoss(), r"does not go with.*read as Bernoulli\(\)"),
        (Categorical(), F.binary_cross_entropy_with_logits, r"read as Bernoulli\(\)"),
        (Categorical(), nn.MSELoss(), "does not go with"),
        (Bernoulli(), nn.CrossEntropyLoss(), "does not go with"),
        (Bernoulli(), nn.MSELoss(), "does not go with"),
        (Categorical(), nn.CrossEntropyLoss(ignore_index=0), "does not go with.*ignore_index=0"),
        (None, nn.MSELoss(reduction="none"), "reduction='mean' or 'sum', got 'none'"),
        (None, nn.BCEWithLogitsLoss(reduction="none"), "got 'none'"),
        (None, partial(F.nll_loss, reduction="none"), "got 'none'"),
        (Gaussian(), nn.MSELoss(reduction="none"), "got 'none'"),
    ],
)
def test_contradictions_are_refused(likelihood, criterion, message):
    with pytest.raises(ValueError, match=message):
        resolve_likelihood(likelihood, criterion)


@pytest.mark.parametrize("likelihood", [None, Gaussian()])
def test_the_class_of_a_criterion_is_refused(likelihood):
    with pytest.raises(TypeError, match=r"criterion must be MSELoss\(\), got the class MSELoss"):
        resolve_likelihood(likelihood, nn.MSELoss)


def test_a_likelihood_that_is_given_is_taken():
    given_one = Categorical()
    assert resolve_likelihood(given_one, nn.CrossEntropyLoss(label_smoothing=0.1)) is given_one
    assert resolve_likelihood(given_one, nn.functional.cross_entropy) is given_one
    assert resolve_likelihood(given_one, lambda outputs, targets: outputs.sum()) is given_one


@pytest.mark.parametrize("weight", [None, torch.ones(3)])
def test_a_batch_of_which_nothing_counts_has_no_mean(weight):
    loss, outputs = nn.CrossEntropyLoss(weight), torch.randn(2, 3)
    likelihood, targets = likelihood_of(loss), torch.tensor([-100, -100])
    assert not likelihood.nll(outputs, targets).any()
    with pytest.raises(ValueError, match=r"ignore_index=-100.*0/0.*reduction='sum'"):
        likelihood.criterion_scale(loss, outputs, targets)
