import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from avalanche_hnet import diagonal_fisher, register_fisher_rule
from avalanche_hnet.core.fisher import layer_rules
from tests.support.cases import N
from tests.support.oracles import assert_close, loop_fisher

pytestmark = pytest.mark.usefixtures("float64")


@settings(max_examples=40, deadline=None)
@given(
    groups=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 2),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    bias=st.booleans(),
)
def test_convolution_rule_equals_loop(groups, kernel, stride, dilation, padding, mode, bias):
    torch.set_default_dtype(torch.float64)
    model = nn.Sequential(
        nn.Conv2d(
            2 * groups, groups, kernel, stride, padding, dilation, groups, bias, padding_mode=mode
        ),
        nn.Flatten(),
        nn.LazyLinear(2),
    )
    x, y = torch.randn(3, 2 * groups, 6, 7), torch.randint(0, 2, (3,))
    model(x)
    assert layer_rules.fisher_rule(model[0]) is layer_rules.convolution
    found = diagonal_fisher(model, [(x, y)])
    assert_close(found, loop_fisher(model, x, y, nn.functional.cross_entropy))


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return self.factor * x


@pytest.mark.parametrize("right", [True, False])
def test_rule_of_a_users_layer_is_used_if_it_is_right(right, monkeypatch):
    monkeypatch.setattr(layer_rules, "_rules", dict(layer_rules._rules))
    calls = []

    @register_fisher_rule(Scale)
    def scale(layer, inputs, grads):
        calls.append(len(inputs))
        return {"factor": (inputs * grads).square().sum(0) * (1 if right else 2)}

    model = nn.Sequential(Scale(), nn.Linear(6, 3))
    x, y = torch.randn(N, 6), torch.randint(0, 3, (N,))
    found = diagonal_fisher(model, [(x, y)])
    assert (N in calls) == right
    assert_close(found, loop_fisher(model, x, y, nn.functional.cross_entropy))


def test_register_refuses_what_is_no_layer():
    with pytest.raises(TypeError, match="layer_types"):
        register_fisher_rule(torch.tanh)


class MaskedLinear(nn.Linear):
    """A subclass with a forward of its own, for which the rule of its base is slightly wrong."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight * torch.tensor([1.0, 1.0, 0.0]), self.bias)


def test_subclass_with_its_own_forward_is_not_taken_for_its_base():
    model, y = MaskedLinear(3, 3), torch.randint(0, 3, (N,))
    x = torch.randn(N, 3) * torch.tensor([1, 1, 0.01])
    found = diagonal_fisher(model, [(x, y)])
    assert (found["weight"][:, 2] == 0).all()
    assert_close(found, loop_fisher(model, x, y, nn.functional.cross_entropy))


@pytest.mark.parametrize("options", [{"scale_grad_by_freq": True}, {"sparse": True}])
def test_embedding_options(options):
    model = nn.Sequential(nn.Embedding(12, 4, **options), nn.Flatten(), nn.Linear(20, 3))
    x, y = torch.randint(0, 12, (N, 5)), torch.randint(0, 3, (N,))
    x[:3] = torch.arange(5)  # no repetition in the first samples
    assert_close(
        diagonal_fisher(model, [(x, y)]), loop_fisher(model, x, y, nn.functional.cross_entropy)
    )
