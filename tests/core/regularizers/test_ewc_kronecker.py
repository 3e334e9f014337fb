"""EWC with Kronecker products against explicit matrices."""

import pytest
import torch

from avalanche_hnet import EWC, KroneckerPosterior
from avalanche_hnet.core.fisher.kronecker_layer import KroneckerFisher
from avalanche_hnet.core.regularizers import Experience
from avalanche_hnet.core.regularizers.base import Penalty
from tests.support.kronecker import assert_same_state, flat, matrix_of
from tests.support.oracles import assert_close
from tests.support.regularizers import (
    BETA,
    Samples,
    assert_penalty,
    begin,
    experiences,
    hypernetwork,
)

pytestmark = pytest.mark.usefixtures("float64")

KRONECKER = {"structure": "kronecker"}


def half_form(fisher, deviation):
    """½ Dᵀ F D with an explicit matrix for each layer."""
    value = 0.0
    for factor in fisher.layers.values():
        d = flat(factor.layout, deviation)
        value = value + d @ matrix_of((factor.inputs, factor.outputs)) @ d / 2
    for name, f in fisher.diagonal.items():
        value = value + (f * deviation[name] ** 2).sum() / 2
    return value


def expected_penalty(parameters, n_samples, value_of):
    own = {n: p.clone().requires_grad_() for n, p in parameters.items()}
    value = value_of(own) / n_samples
    gradients = torch.autograd.grad(value, [*own.values()])
    return Penalty(value.detach(), dict(zip(own, gradients, strict=True)), {})


@pytest.mark.parametrize("kind", ["full", "chunks that do not divide", "chunks of tasks"])
@pytest.mark.parametrize("gamma", [1.0, 0.7, 0.0])
def test_online_it_has_the_prior_once_and_products_that_decay(kind, gamma):
    """With all products kept, the sum over experiences is exact."""
    regularizer = EWC(BETA, gamma=gamma, prior_variance=2.0, rank=None, **KRONECKER)
    earlier, mean = [], None
    for parameters, samples, found in experiences(hypernetwork(kind), regularizer):

        def value_of(own, earlier=earlier, mean=mean):
            if mean is None:
                return sum((p**2).sum() for p in own.values()) / 4
            deviation = {n: p - mean[n] for n, p in own.items()}
            value = sum((d**2).sum() for d in deviation.values()) / 4
            for age, (n_samples, fisher) in enumerate(reversed(earlier)):
                value = value + gamma**age * n_samples * half_form(fisher, deviation)
            return BETA * value

        assert_penalty(found, expected_penalty(parameters, samples.n_samples, value_of), beta=1)
        earlier.append((samples.n_samples, samples.factors))
        mean = parameters
    assert isinstance(regularizer.posterior, KroneckerPosterior)
    assert_close(regularizer.posterior.mean, mean)


def test_rank_one_is_that_of_the_posterior():
    ours, regularizer, posterior = hypernetwork(), EWC(BETA, **KRONECKER), KroneckerPosterior()
    posterior.align(ours.shared_parameters())
    for number, (parameters, samples, found) in enumerate(experiences(ours, regularizer)):
        if number:
            value = posterior.ewc_term(BETA)(parameters) / samples.n_samples
            torch.testing.assert_close(found.value, value)
        everything = {n: torch.ones_like(p, dtype=torch.bool) for n, p in parameters.items()}
        posterior.update(parameters, samples.factors, samples.n_samples, everything)
    found, expected = (p.state_dict()["layers"] for p in (regularizer.posterior, posterior))
    assert found.keys() == expected.keys() == {"trunk.0", "trunk.2"}
    for name, layer in found.items():
        assert len(layer["inputs"]) == 1
        for factor in ("inputs", "outputs"):
            torch.testing.assert_close(layer[factor], expected[name][factor])


@pytest.mark.parametrize("online", [True, False])
def test_max_rank_is_that_of_the_penalty_alone(online):
    """By a posterior of the first experience, which has no prior if not online."""
    values, states = [], []
    for max_rank in (None, 1):
        torch.manual_seed(0)
        ours = hypernetwork()
        regularizer = EWC(BETA, online=online, max_rank=max_rank, **KRONECKER)
        ((parameters, samples, _),) = experiences(ours, regularizer, 1)
        state = regularizer.state_dict()
        again = EWC(BETA, online=online, max_rank=max_rank, **KRONECKER)
        again.load_state_dict(state)
        moved = {n: p + 0.1 for n, p in parameters.items()}
        posterior = KroneckerPosterior(1.0 if online else 1e30, max_rank=max_rank)
        posterior.align(ours.shared_parameters())
        everything = {n: torch.ones_like(p, dtype=torch.bool) for n, p in parameters.items()}
        posterior.update(parameters, samples.factors, samples.n_samples, everything)
        term = posterior.ewc_term(BETA)(moved)
        for each in (regularizer, again):
            each.before_experience(ours, Experience((0,), 50, None))
            prior = 0 if online else sum((p**2).sum() for p in moved.values()) / 2
            torch.testing.assert_close(each.penalty(moved).value * 50 - prior, term)
        values.append(term)
        states.append(state)
    assert not torch.isclose(*values, rtol=1e-4)
    assert_same_state(*states)


@pytest.mark.parametrize("kind", ["full", "chunks that do not divide", "chunks of tasks"])
def test_of_all_experiences_it_has_one_penalty_for_each_and_the_prior(kind):
    regularizer = EWC(BETA, online=False, prior_variance=2.0, **KRONECKER)
    earlier = []
    for parameters, samples, found in experiences(hypernetwork(kind), regularizer):
        samples.factors.diagonal.pop("output.bias")  # what is missing is zero

        def value_of(own, earlier=earlier):
            value = sum((p**2).sum() / 4 for p in own.values())
            for n_samples, fisher, centre in earlier:
                deviation = {n: own[n] - c for n, c in centre.items()}
                value = value + BETA * n_samples * half_form(fisher, deviation)
            return value

        assert_penalty(found, expected_penalty(parameters, samples.n_samples, value_of), beta=1)
        earlier.append((samples.n_samples, samples.factors, parameters))


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("trained", ["output", "trunk.0.weight", "trunk"])
def test_what_is_not_trained_any_more_stands_at_its_mean(online, trained):
    ours, regularizer = hypernetwork(), EWC(BETA, online=online, **KRONECKER)
    for _ in experiences(ours, regularizer, 1):
        pass
    all_parameters, _ = begin(regularizer, ours, protected=(0,))
    parameters = {n: p for n, p in all_parameters.items() if n.startswith(trained)}
    at_mean = {n: p.detach() for n, p in ours.shared_parameters().items()} | parameters
    expected = regularizer.penalty(at_mean).gradients
    found = regularizer.penalty(parameters).gradients
    assert_close(found, {n: expected[n] for n in parameters})


@pytest.mark.parametrize("online", [True, False])
def test_gradients_equal_finite_differences(online):
    ours, regularizer = hypernetwork(), EWC(BETA, online=online, **KRONECKER)
    for _ in experiences(ours, regularizer, 3):
        pass
    parameters, along = begin(regularizer, ours)
    penalty = regularizer.penalty(parameters)

    def value(step):
        return regularizer.penalty({n: p + step * along[n] for n, p in parameters.items()}).value

    slope = (value(1e-4) - value(-1e-4)) / 2e-4
    expected = sum((g * along[n]).sum() for n, g in penalty.gradients.items())
    torch.testing.assert_close(expected, slope, rtol=1e-7, atol=0)


@pytest.mark.parametrize("online", [True, False])
def test_the_two_structures_do_not_take_each_others_state(online):
    states = {}
    for structure in ("diagonal", "kronecker"):
        regularizer = EWC(online=online, structure=structure)
        for _ in experiences(hypernetwork(), regularizer, 2):
            pass
        states[structure] = regularizer.state_dict()
    with pytest.raises(ValueError, match="state must be that of a KroneckerPosterior"):
        EWC(online=online, structure="kronecker").load_state_dict(states["diagonal"])
    with pytest.raises(ValueError, match="state must be that of a"):
        EWC(online=online).load_state_dict(states["kronecker"])


@pytest.mark.parametrize("option", [{"rank": 2}, {"weight_sharing": "reduce"}])
def test_a_state_with_other_settings_is_refused(option):
    state = EWC(**KRONECKER).state_dict()
    with pytest.raises(ValueError, match=f"made with {next(iter(option))}"):
        EWC(**KRONECKER, **option).load_state_dict(state)


@pytest.mark.parametrize("online", [True, False])
def test_factors_of_another_network_are_refused(online):
    ours, regularizer = hypernetwork(), EWC(online=online, **KRONECKER)
    regularizer.before_experience(ours, Experience((), 30))
    samples = Samples(ours)
    wrong = Samples(hypernetwork(hidden=(4, 5))).factors.layers
    samples.factors = KroneckerFisher(wrong, samples.factors.diagonal)
    with pytest.raises(ValueError, match=r"fisher.layers\['trunk.0'\] has factors of shapes"):
        regularizer.after_experience(samples, (0,))
    assert regularizer.knows_nothing


@pytest.mark.parametrize("online", [True, False])
def test_states_of_the_diagonal_are_as_they_were(online):
    regularizer = EWC(online=online)
    for _ in experiences(hypernetwork(), regularizer, 2):
        pass
    state = regularizer.state_dict()
    assert state.keys() == {"kind", "online", "posterior", "experiences", "checksums"}
    for experience in state["experiences"]:
        assert experience.keys() == {"weights", "centres"}
