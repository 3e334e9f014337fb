import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from avalanche_hnet.core.regularizers import adam_step
from avalanche_hnet.core.regularizers.lookahead import optimizer_step
from tests.support.optimizers import Halved, assert_same, real_step

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("error"),
]


@settings(deadline=None)
@given(
    kind=st.sampled_from([torch.optim.Adam, torch.optim.AdamW]),
    lr=st.floats(0, 10),
    betas=st.tuples(st.floats(0, 0.99), st.floats(0, 0.999)),
    eps=st.floats(1e-8, 1),
    weight_decay=st.floats(0, 2),
    steps_before=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    foreach=st.booleans(),
)
def test_adam_with_any_options(kind, lr, betas, eps, weight_decay, steps_before, foreach):
    parameters = [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(4))]
    groups = [{"params": parameters[:1]}, {"params": parameters[1:], "lr": lr / 2}]
    options = {"betas": betas, "eps": eps, "weight_decay": weight_decay, "foreach": foreach}
    optimizer = kind(groups, lr, **options)
    for step in range(3):  # the parameters take different numbers of steps
        for p, n in zip(parameters, steps_before, strict=True):
            p.grad = torch.randn_like(p) if step < n else None
        optimizer.step()
    for p in parameters:
        p.grad = torch.randn_like(p)
    given = {p: p.grad for p in parameters}
    assert adam_step.is_plain(optimizer, given) == (min(steps_before) > 0)
    state = copy.deepcopy(optimizer.state_dict())
    found = optimizer_step(optimizer)
    assert all(torch.equal(p.grad, given[p]) for p in parameters)
    for p, memory in optimizer.state.items():
        before = state["state"][next(i for i, q in enumerate(parameters) if q is p)]
        assert all(torch.equal(memory[n], before[n]) for n in before)
    sizes = [p.detach().abs().max().item() for p in parameters]
    expected = real_step(optimizer, parameters)
    sizes += [change.abs().max().item() for change in expected.values()]
    assert_same(found, expected, parameters, tolerance=1e-12 * (1 + max(sizes)))


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.Adam(p, amsgrad=True),
        lambda p: torch.optim.Adam(p, maximize=True),
        lambda p: torch.optim.Adam(p, torch.tensor(0.1)),
        lambda p: torch.optim.NAdam(p),
        lambda p: Halved(p, 0.1),
    ],
)
def test_other_adams_take_a_trial_step(optimizer):
    parameters = [nn.Parameter(torch.randn(3))]
    made = optimizer(parameters)
    with torch.no_grad():
        parameters[0].grad = torch.randn(3)
        made.step()
    parameters[0].grad = torch.randn(3)
    assert not adam_step.is_plain(made, {parameters[0]: parameters[0].grad})
