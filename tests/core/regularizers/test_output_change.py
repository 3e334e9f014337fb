import dataclasses

import pytest
import torch
from torch import nn

from avalanche_hnet import EWC, FixedTarget, HyperNetwork
from avalanche_hnet.core.hypernetworks.output_layer import Factors
from avalanche_hnet.core.regularizers import Experience
from avalanche_hnet.core.regularizers.output_change import OutputChange

pytestmark = pytest.mark.usefixtures("float64")


def test_change_since_then():
    before = Factors(torch.randn(1, 1, 3), torch.randn(3, 5), torch.randn(5))
    now = {"output.weight": torch.randn(3, 5).requires_grad_(), "trunk.0.bias": torch.randn(3)}
    change = OutputChange.since(before, now)
    assert torch.equal(change.weight, now["output.weight"] - before.weight)
    assert torch.equal(change.bias, torch.zeros(5))
    (leaf,) = change.leaves
    assert leaf is change.weight
    assert leaf.is_leaf
    assert not change.bias.requires_grad
    assert OutputChange.since(before, {}).leaves == []


@pytest.mark.parametrize("form", ["direct", "quadratic"])
def test_parameters_that_reach_the_deviation_are_values_and_no_differences(form, monkeypatch):
    ours = HyperNetwork(nn.Linear(3, 2), embedding_dim=2, hidden=(4,))
    for _ in range(2):
        ours.add_task()
    regularizer = FixedTarget(1.0, form=form)
    regularizer.before_experience(ours, Experience((0,), 10))
    theta = {n: p.detach() + 0.1 for n, p in ours.shared_parameters().items()}
    change = {n: torch.full_like(p, 0.01) for n, p in theta.items()}
    seen, original = [], HyperNetwork.factors_of

    def watched(self, embedded, parameters=None):
        seen.append(dict(parameters))
        return original(self, embedded, parameters)

    monkeypatch.setattr(HyperNetwork, "factors_of", watched)
    gradients = regularizer.penalty(theta, change).gradients
    assert list(gradients) == list(theta)
    for parameters in seen:
        for name, value in parameters.items():
            torch.testing.assert_close(value.detach(), theta[name] + change[name])


@pytest.mark.parametrize(
    ("regularizer", "attribute"), [(FixedTarget(), "_protection"), (EWC(), "_terms")]
)
def test_what_belongs_to_an_experience_is_one_frozen_object(regularizer, attribute):
    ours = HyperNetwork(nn.Linear(3, 2), embedding_dim=2, hidden=(4,))
    ours.add_task()
    attributes, seen = set(vars(regularizer)), []
    for _ in range(2):
        regularizer.before_experience(ours, Experience((0,), 10))
        regularizer.penalty(ours.shared_parameters())
        assert set(vars(regularizer)) == attributes
        seen.append(getattr(regularizer, attribute))
    assert seen[0] is not seen[1]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(seen[0], dataclasses.fields(seen[0])[0].name, None)
