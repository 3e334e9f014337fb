"""An interrupt at any line leaves the posterior before it or the one after it."""

import copy

import pytest
import torch
from torch import nn

from avalanche_hnet import GaussianPosterior, KroneckerPosterior
from tests.support.interrupts import count_lines, interrupted, some_lines
from tests.support.states import same_state


class Growing(nn.Sequential):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def grow(self):
        old = self[2]
        self[2] = nn.Linear(4, 3)
        with torch.no_grad():
            self[2].weight[:2], self[2].bias[:2] = old.weight, old.bias


def batches(n_classes):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, 3, generator=generator)
    return [(x, torch.arange(12) % n_classes)]


def trained(make):
    """A posterior after one experience, and a model that has grown and moved since."""
    model, posterior = Growing(), make()
    parameters = dict(model.named_parameters())
    active = {n: torch.ones_like(p, dtype=torch.bool) for n, p in parameters.items()}
    posterior.align(parameters)
    posterior.update(parameters, posterior.fisher(model, batches(2)), 12, active)
    model.grow()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1
    return model, posterior


MAKE = {
    "diagonal": GaussianPosterior,
    "kronecker": KroneckerPosterior,
    "two products": lambda: KroneckerPosterior(rank=2, max_rank=2),
}


def step_of(kind, model):
    """A change of a posterior, as a function of it."""
    parameters = dict(model.named_parameters())
    if kind == "align":
        return lambda posterior: posterior.align(parameters)
    if kind == "forget":
        return lambda posterior: posterior.forget()
    active = {n: torch.ones_like(p, dtype=torch.bool) for n, p in parameters.items()}
    if kind == "update":
        fisher = None

        def update(posterior):
            nonlocal fisher
            fisher = fisher or posterior.fisher(model, batches(3))
            posterior.update(parameters, fisher, 12, active, gamma=0.7)

        return update
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", ["align", "update", "forget"])
@pytest.mark.parametrize("structure", MAKE)
def test_old_or_new_and_never_twice(structure, kind):
    model, before = trained(MAKE[structure])
    step = step_of(kind, model)
    after = copy.deepcopy(before)
    step(after)
    old, new = before.state_dict(), after.state_dict()
    assert not same_state(old, new)
    n_lines = count_lines(lambda: step(copy.deepcopy(before)))
    n_old, lines = 0, [*some_lines(n_lines - 10, 100), *range(n_lines - 10, n_lines)]
    for number in lines:
        posterior = copy.deepcopy(before)
        assert interrupted(lambda posterior=posterior: step(posterior), number)
        found = posterior.state_dict()
        is_old = same_state(found, old)
        n_old += is_old
        assert is_old or same_state(found, new)
        if is_old:
            step(posterior)
        assert same_state(posterior.state_dict(), new)
    assert n_old > len(lines) / 2


@pytest.mark.parametrize("structure", MAKE)
def test_loading_is_interrupted(structure):
    model, loaded = trained(MAKE[structure])
    state = loaded.state_dict()
    empty = MAKE[structure]()
    n_lines = count_lines(lambda: empty.load_state_dict(state))
    for number in [*some_lines(n_lines - 10, 60), *range(n_lines - 10, n_lines)]:
        posterior = MAKE[structure]()
        empty = posterior.state_dict()
        assert interrupted(lambda posterior=posterior: posterior.load_state_dict(state), number)
        assert same_state(posterior.state_dict(), empty)
        posterior.load_state_dict(state)
        assert same_state(posterior.state_dict(), state)
    # Only now it insists on the model's weights being at the mean.
    with pytest.raises(ValueError, match="not at the mean of the loaded posterior"):
        posterior.align(dict(model.named_parameters()))
