"""Wrong arguments are refused at once, with what would be right."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from avalanche_hnet import (
    BlockMultiHeadClassifier,
    Categorical,
    Gaussian,
    GaussianPosterior,
    InMemoryPlugin,
    PriorEWCPlugin,
    TaskInference,
    TaskInferencePlugin,
    predict,
)
from avalanche_hnet.benchmarks import GaussianMixture2D, PermutedDigits, Regression1D, SplitDigits
from avalanche_hnet.core.common.arguments import (
    at_least,
    count_or_all,
    fraction,
    generator_or_none,
    integer,
    not_negative,
    number,
    one_of,
    positive,
)
from avalanche_hnet.core.posterior.predictor import PredictionMethod

NO_NUMBERS = ["100", None, [1.0]]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=str)
@pytest.mark.parametrize(
    ("make", "name", "right"),
    [
        (PriorEWCPlugin, "ewc_lambda", "a number of at least 0"),
        (PriorEWCPlugin, "prior_variance", "a positive number"),
        (PriorEWCPlugin, "gamma", r"a number in \[0, 1\]"),
        (PriorEWCPlugin, "log_every", "an integer of at least 1"),
        (GaussianPosterior, "prior_variance", "a positive number"),
        (Gaussian, "noise_std", "a positive number"),
        (InMemoryPlugin, "memory_limit", "an integer of at least 1"),
        (BlockMultiHeadClassifier, "in_features", "an integer of at least 1"),
        (TaskInferencePlugin, "n_samples", "an integer of at least 1"),
        (SplitDigits, "n_experiences", "1, 2, 5 or 10"),
        (PermutedDigits, "n_experiences", "an integer of at least 1"),
        (Regression1D, "noise_std", "a number of at least 0"),
        (Regression1D, "n_train", "an integer of at least 1"),
        (Regression1D, "n_test", "an integer of at least 1"),
        (GaussianMixture2D, "std", "a number of at least 0"),
        (GaussianMixture2D, "radius", "a positive number"),
    ],
)
def test_what_is_no_number_is_named(make, name, right, value):
    message = rf"{name} must be {right}, got {re.escape(repr(value))}"
    with pytest.raises(TypeError, match=message):
        make(**{name: value})


@pytest.mark.parametrize("value", ["100", [1]], ids=str)
def test_number_of_samples_for_the_fisher(value):
    with pytest.raises(TypeError, match=r"n_fisher must be an integer .*, or None for all, got"):
        PriorEWCPlugin(n_fisher=value)


@pytest.mark.parametrize("n_samples", NO_NUMBERS, ids=str)
def test_number_of_samples_of_an_update(n_samples):
    posterior, parameters = GaussianPosterior(), dict(nn.Linear(6, 3).named_parameters())
    with pytest.raises(TypeError, match="n_samples must be an integer of at least 1, got"):
        posterior.update(parameters, {}, n_samples, {})
    with pytest.raises(TypeError, match="gamma must be a number"):
        posterior.update(parameters, {}, 3, {}, gamma=n_samples)
    assert not posterior.mean


def aligned():
    model, posterior = nn.Linear(6, 3), GaussianPosterior()
    posterior.align(dict(model.named_parameters()))
    return model, posterior


@pytest.mark.parametrize("wrong", [42, "42", np.random.default_rng(0)], ids=lambda w: str(w)[:9])
@pytest.mark.parametrize(
    "use",
    [
        lambda generator: PriorEWCPlugin(generator=generator),
        lambda generator: TaskInference(nn.Identity(), generator=generator),
        lambda generator: TaskInferencePlugin(generator=generator),
        lambda generator: aligned()[1].sample(generator),
        lambda generator: GaussianPosterior().sample(generator),
        lambda generator: predict(*aligned(), torch.zeros(2, 6), "map", generator=generator),
        lambda generator: Categorical().sample(torch.zeros(2, 3), generator),
        lambda generator: Gaussian().sample(torch.zeros(2, 3), generator),
    ],
)
def test_what_is_no_generator_is_refused(use, wrong):
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator or None, got"):
        use(wrong)


def test_right_arguments_pass():
    for value in (1, np.int64(1)):
        integer(a=value)
        at_least(1, a=value, b=7)
        count_or_all(a=value, b=None)
    for value in (0, 0.5, np.float32(1), np.float64(1)):
        number(a=value)
        not_negative(a=value)
        fraction(a=value, b=1)
    positive(a=1e-9, b=2)
    generator_or_none(a=None, b=torch.Generator())
    one_of(PredictionMethod, a="map", b="sample")


@pytest.mark.parametrize(
    ("check", "error", "message"),
    [
        (lambda: integer(a=1.0), TypeError, "a must be an integer, got 1.0"),
        (lambda: integer("even", a=True), TypeError, "a must be even, got True"),
        (lambda: at_least(2, a=2, b=1), ValueError, "b must be at least 2, got 1"),
        (lambda: count_or_all(a=0), ValueError, "a must be an integer of at least 1, or None"),
        (lambda: positive(a=0), ValueError, "a must be positive and finite, got 0"),
        (lambda: positive(a=float("inf")), ValueError, "a must be positive and finite, got inf"),
        (lambda: not_negative(a=float("nan")), ValueError, "a must be at least 0 and finite"),
        (lambda: fraction(a=1.1), ValueError, r"a must lie in \[0, 1\], got 1.1"),
        (lambda: one_of(PredictionMethod, a=3), ValueError, r"a must be one of \('map', .*got 3"),
    ],
)
def test_wrong_arguments_are_named(check, error, message):
    with pytest.raises(error, match=message):
        check()
