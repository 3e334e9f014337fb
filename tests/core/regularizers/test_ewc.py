import pytest
import torch

from avalanche_hnet import EWC
from avalanche_hnet.core.regularizers.base import Penalty
from tests.support.oracles import assert_close
from tests.support.regularizers import BETA, assert_penalty, begin, experiences, hypernetwork

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("online", [True, False])
def test_ewc_leaves_out_parameters_that_are_not_trained_any_more(online):
    ours, regularizer = hypernetwork(), EWC(BETA, online=online)
    for _ in experiences(ours, regularizer, 2):
        pass
    all_parameters, _ = begin(regularizer, ours)
    parameters = {n: p for n, p in all_parameters.items() if n.startswith("output")}
    expected = regularizer.penalty(all_parameters).gradients
    found = regularizer.penalty(parameters).gradients
    assert_close(found, {n: expected[n] for n in parameters})


@pytest.mark.parametrize("gamma", [1.0, 0.7, 0.0])
def test_online_ewc_has_the_prior_once_and_a_precision_that_decays(gamma):
    regularizer = EWC(BETA, gamma=gamma, prior_variance=2.0, n_fisher=7)
    precision, mean = {}, {}
    for parameters, samples, found in experiences(hypernetwork(), regularizer):
        value, gradients = 0.0, {}
        for name, p in parameters.items():
            p = p.clone().requires_grad_()
            if not precision or name not in precision:
                part = (p**2).sum() / 4
                precision[name] = torch.full_like(p, 1 / 2)
            else:
                part = BETA / 2 * (precision[name] * (p - mean[name]) ** 2).sum()
            part = part / samples.n_samples
            (gradients[name],) = torch.autograd.grad(part, [p])
            value += part.detach()
            fisher = samples.of_theta[name]
            precision[name] = 0.5 + gamma * (precision[name] - 0.5) + samples.n_samples * fisher
            mean[name] = p.detach()
        assert_penalty(found, Penalty(value, gradients, {}), beta=1)
    assert_close(regularizer.posterior.precision, precision)
    assert_close(regularizer.posterior.mean, mean)


def test_ewc_of_all_experiences_has_one_penalty_for_each_and_the_prior():
    regularizer = EWC(BETA, online=False, prior_variance=2.0, n_fisher=7)
    earlier = []
    for parameters, samples, found in experiences(hypernetwork(), regularizer):
        del samples.of_theta["output.bias"]  # what is missing is zero
        own = {n: p.clone().requires_grad_() for n, p in parameters.items()}
        value = sum((p**2).sum() / 4 for p in own.values())
        for n_samples, fisher, centre in earlier:
            for name, f in fisher.items():
                value += BETA / 2 * n_samples * (f * (own[name] - centre[name]) ** 2).sum()
        value = value / samples.n_samples
        gradients = torch.autograd.grad(value, [*own.values()])
        expected = Penalty(value.detach(), dict(zip(own, gradients, strict=True)), {})
        assert_penalty(found, expected, beta=1)
        earlier.append((samples.n_samples, samples.of_theta, parameters))


@pytest.mark.parametrize("online", [True, False])
def test_ewc_looks_at_theta_and_at_nothing_else(online):
    ours, regularizer = hypernetwork("chunks of tasks"), EWC(BETA, online=online)
    for _ in experiences(ours, regularizer, 3):
        pass
    parameters, change = begin(regularizer, ours)
    found = regularizer.penalty(parameters)
    with torch.no_grad():
        for task in range(4):
            for p in ours.task_parameters(task).values():
                p.add_(1)
    again = regularizer.penalty(parameters, change, through_change=True)
    assert torch.equal(again.value, found.value)
    assert again.change_gradients == {}


@pytest.mark.parametrize("online", [True, False])
def test_gradients_of_ewc_equal_finite_differences(online):
    ours, regularizer = hypernetwork(), EWC(BETA, online=online)
    for _ in experiences(ours, regularizer, 3):
        pass
    parameters, along = begin(regularizer, ours)
    penalty = regularizer.penalty(parameters)

    def value(step):
        return regularizer.penalty({n: p + step * along[n] for n, p in parameters.items()}).value

    slope = (value(1e-4) - value(-1e-4)) / 2e-4
    expected = sum((g * along[n]).sum() for n, g in penalty.gradients.items())
    torch.testing.assert_close(expected, slope, rtol=1e-8, atol=0)


@pytest.mark.parametrize("online", [True, False])
def test_online_ewc_and_the_other_do_not_take_each_others_state(online):
    regularizer = EWC(online=online)
    for _ in experiences(hypernetwork(), regularizer, 2):
        pass
    with pytest.raises(ValueError, match=f"online={online}"):
        EWC(online=not online).load_state_dict(regularizer.state_dict())
