"""States of Kronecker-factored posteriors, and what they refuse."""

import copy
from dataclasses import replace

import pytest
import torch

from avalanche_hnet import Gaussian, GaussianPosterior, KroneckerPosterior
from avalanche_hnet.core.fisher.kronecker_layer import KroneckerFisher, LayerLayout
from tests.support.kronecker import (
    LAYOUTS,
    assert_same_state,
    everything,
    grown,
    parameters_of,
    random_fisher,
)

pytestmark = pytest.mark.usefixtures("float64")


def test_what_does_not_fit_is_refused_and_changes_nothing():
    layout, phi = LAYOUTS["linear"][1], parameters_of("linear")
    posterior = KroneckerPosterior(0.5)
    fisher = random_fisher({"layer": layout}, phi, 3)
    posterior.update(phi, fisher, 5, everything(phi))
    before = copy.deepcopy(posterior.state_dict())
    factor = fisher.layers["layer"]

    bad = torch.full_like(factor.inputs, float("nan"))
    other = LayerLayout("other.weight", None, 1, False, (4,))
    cases = [
        ({}, TypeError, "fisher must be a KroneckerFisher"),
        (replace(factor, inputs=bad), ValueError, r"layers\['layer'\].inputs must be finite"),
        (replace(factor, outputs=-factor.outputs), ValueError, "outputs must be .* semidefinite"),
        (replace(factor, layout=other), ValueError, "'other.weight', which is no parameter"),
        (replace(factor, outputs=factor.outputs[:, :2, :2]), ValueError, "asks for"),
    ]
    for value, error, message in cases:
        wrong = value if value == {} else KroneckerFisher({"layer": value}, fisher.diagonal)
        with pytest.raises(error, match=message):
            posterior.update(phi, wrong, 5, everything(phi))
    with pytest.raises(ValueError, match="gamma"):
        posterior.update(phi, fisher, 5, everything(phi), 2.0)
    negative = KroneckerFisher(fisher.layers, {"norm": -torch.ones(3)})
    with pytest.raises(ValueError, match=r"norm.* must be finite and not negative"):
        posterior.update(phi, negative, 5, everything(phi))
    assert_same_state(posterior.state_dict(), before)


def test_layers_with_groups_may_not_grow():
    layout, phi = LAYOUTS["groups"][1], parameters_of("groups")
    posterior = KroneckerPosterior(0.5)
    posterior.update(phi, random_fisher({"layer": layout}, phi, 3), 5, everything(phi))
    before = copy.deepcopy(posterior.state_dict())
    with pytest.raises(ValueError, match=r"'layer.weight' has 2 groups and has grown to 6 rows"):
        posterior.align(grown(phi, layout, 2))
    assert_same_state(posterior.state_dict(), before)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rank": 0}, ValueError, "rank must be an integer of at least 1, or None for all, got 0"),
        ({"rank": "1"}, TypeError, "rank must be .* got '1'"),
        ({"weight_sharing": "sum"}, ValueError, "weight_sharing must be one of"),
        ({"prior_variance": -1}, ValueError, "prior_variance"),
        ({"prior_mean": "one"}, ValueError, "prior_mean"),
    ],
)
def test_wrong_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        KroneckerPosterior(**options)


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("rank", [1, None])
def test_state_goes_through_a_file(tmp_path, kind, rank):
    layout, phi = LAYOUTS[kind][1], parameters_of(kind)
    posterior = KroneckerPosterior(0.5, "initial", rank, "reduce")
    for number in range(3):
        fisher = random_fisher({"layer": layout}, phi, number)
        posterior.update(phi, fisher, 5, everything(phi), 0.9)
    posterior.likelihood = Gaussian(0.3)
    torch.save(posterior.state_dict(), tmp_path / "state.pt")
    again = KroneckerPosterior(0.5, "initial", rank, "reduce")
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_same_state(again.state_dict(), posterior.state_dict())
    assert isinstance(again.likelihood, Gaussian)
    assert again.likelihood.noise_std == 0.3
    other = parameters_of(kind, 9)
    torch.testing.assert_close(again.ewc_term()(other), posterior.ewc_term()(other))
    with pytest.raises(ValueError, match="not at the mean of the loaded posterior"):
        again.align(other)
    assert not again.align(phi)
    torch.testing.assert_close(
        again.sample(torch.Generator().manual_seed(1)),
        posterior.sample(torch.Generator().manual_seed(1)),
    )


def test_states_that_do_not_fit_are_refused_as_a_whole():
    layout, phi = LAYOUTS["linear"][1], parameters_of("linear")
    posterior = KroneckerPosterior(0.5)
    posterior.update(phi, random_fisher({"layer": layout}, phi, 3), 5, everything(phi))
    state, before = posterior.state_dict(), copy.deepcopy(posterior.state_dict())
    layer = state["layers"]["layer"]
    cases = [
        (GaussianPosterior(0.5).state_dict(), "has no"),
        (3, "has no"),
        (state | {"rank": 2}, "made with rank=2, but this posterior has 1"),
        (state | {"weight_sharing": "reduce"}, "weight_sharing='reduce'"),
        (state | {"prior_variance": 2.0}, "prior_variance=2.0"),
        (state | {"more": 2.0}, "keys"),
        (state | {"layers": 3}, "'layers'.* must be a dictionary"),
        (state | {"layers": {"layer": {}}}, "must be a dictionary with 'layout'"),
        (state | {"layers": {"layer": layer | {"layout": {}}}}, "with the keys"),
        (state | {"layers": {"layer": layer | {"inputs": []}}}, "as many 'inputs'"),
        (
            state | {"layers": {"layer": layer | {"inputs": [torch.zeros(1, 2, 2)]}}},
            r"\[0\] must be of the shape \(1, 5, 5\), got \(1, 2, 2\)",
        ),
        (
            state | {"layers": {"layer": layer | {"layout": layer["layout"] | {"bias": "b"}}}},
            "does not have",
        ),
    ]
    for wrong, message in cases:
        with pytest.raises(ValueError, match=message):
            posterior.load_state_dict(wrong)
    assert_same_state(posterior.state_dict(), before)


def test_an_interrupt_leaves_the_posterior_before_or_after(monkeypatch):
    layout, phi = LAYOUTS["linear"][1], parameters_of("linear")
    posterior = KroneckerPosterior(0.5)
    fisher = random_fisher({"layer": layout}, phi, 3)
    posterior.update(phi, fisher, 5, everything(phi))
    before = copy.deepcopy(posterior.state_dict())

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("avalanche_hnet.core.posterior.kronecker.accumulated", interrupted)
    with pytest.raises(KeyboardInterrupt):
        posterior.update(parameters_of("linear", 1), fisher, 5, everything(phi))
    assert_same_state(posterior.state_dict(), before)
    monkeypatch.setattr("avalanche_hnet.core.posterior.kronecker._fitted", interrupted)
    with pytest.raises(KeyboardInterrupt):
        posterior.align(grown(phi, layout, 2))
    assert_same_state(posterior.state_dict(), before)
