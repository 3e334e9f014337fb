"""An interrupt in a Fisher pass or a prediction leaves no trace in the model."""

import pytest
import torch

from avalanche_hnet import (
    Categorical,
    GaussianPosterior,
    KroneckerPosterior,
    diagonal_fisher,
    kronecker_factors,
    predict,
)
from tests.support.cases import CASES
from tests.support.interrupts import count_lines, interrupted, some_lines
from tests.support.traces import differences, traces_of

NAMES = ("conv1d", "normalisations", "transformer", "tied", "recurrent", "incremental")
RANDOM = ("python", "numpy", "torch")


def learned(make, model, batches):
    posterior, parameters = make(), dict(model.named_parameters())
    active = {n: torch.ones_like(p, dtype=torch.bool) for n, p in parameters.items()}
    posterior.align(parameters)
    posterior.update(parameters, posterior.fisher(model, batches), 9, active)
    posterior.likelihood = Categorical()
    return posterior


def passes(model, x, y):
    """What runs the model, by name."""
    batches = [(x, y)]
    for kind in ("empirical", "exact"):
        yield f"diagonal, {kind}", lambda k=kind: diagonal_fisher(model, batches, kind=k)
        yield f"Kronecker, {kind}", lambda k=kind: kronecker_factors(model, batches, kind=k)
    for make in (GaussianPosterior, KroneckerPosterior):
        posterior = learned(make, model, batches)
        for method in ("map", "linearized", "sample"):
            name = f"{method}, {make.__name__}"
            yield name, lambda p=posterior, m=method: predict(model, p, x, m, n_samples=2)


@pytest.mark.parametrize("name", NAMES)
def test_no_trace_is_left(name):
    torch.manual_seed(0)
    make, inputs = CASES[name]
    model, x = make(), inputs()
    n_classes = model.eval()(x).shape[1]
    model.train()
    y = torch.arange(len(x)) % n_classes
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)  # of a step that is not made yet
    next(model.parameters()).requires_grad_(True)
    for what, call in passes(model, x, y):
        call()  # some lines are run once only
        before = traces_of(model)
        for number in some_lines(count_lines(call), 5, seed=len(what)):
            assert interrupted(call, number), what
            left = [n for n in differences(before, traces_of(model)) if n not in RANDOM]
            assert left == [], (what, number)
