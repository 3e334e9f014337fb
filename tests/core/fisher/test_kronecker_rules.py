import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from avalanche_hnet import diagonal_fisher, kronecker_factors, register_kronecker_rule
from avalanche_hnet.core.fisher import kronecker_rules
from tests.support.cases import CASES, N
from tests.support.kronecker_oracles import assert_factors, loop_factors
from tests.support.oracles import assert_close

pytestmark = pytest.mark.usefixtures("float64")
cross_entropy = nn.functional.cross_entropy
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@settings(max_examples=60, deadline=None)
@given(
    n_spatial=st.integers(1, 3),
    channels=st.sampled_from([1, 2, 17]),
    groups=st.integers(1, 2),
    kernel=st.tuples(*[st.integers(1, 3)] * 3),
    stride=st.sampled_from([1, 1, 2, 3]),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 2),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    bias=st.booleans(),
    weight_sharing=st.sampled_from(["expand", "reduce"]),
)
def test_convolutions_equal_loops(
    n_spatial, channels, groups, kernel, stride, dilation, padding, mode, bias, weight_sharing
):
    torch.set_default_dtype(torch.float64)
    size = (6, 5, 5)[:n_spatial] if n_spatial < 3 else (3, 5, 4)
    assume(all(dilation * (k - 1) < n + 2 * padding for k, n in zip(kernel, size, strict=False)))
    layer = CONVOLUTIONS[n_spatial](
        channels * groups,
        2 * groups,
        kernel[:n_spatial],
        stride,
        padding,
        dilation,
        groups,
        bias,
        padding_mode=mode,
    )
    x, y = torch.randn(3, channels * groups, *size), torch.randint(0, 2, (3,))
    model = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(2)).eval()
    model(x)
    found = kronecker_factors(model, [(x, y)], weight_sharing=weight_sharing)
    assert_factors(
        found.layers["0"], *loop_factors(model, layer, x, y, cross_entropy, weight_sharing)
    )


@settings(max_examples=30, deadline=None)
@given(
    positions=st.lists(st.integers(1, 3), max_size=2),
    bias=st.booleans(),
    weight_sharing=st.sampled_from(["expand", "reduce"]),
)
def test_linear_layers_equal_loops(positions, bias, weight_sharing):
    torch.set_default_dtype(torch.float64)
    model = nn.Sequential(nn.Linear(4, 3, bias), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2)).eval()
    x, y = torch.randn(5, *positions, 4), torch.randint(0, 2, (5,))
    model(x)
    found = kronecker_factors(
        model, [(x[:2], y[:2]), (x[2:], y[2:])], weight_sharing=weight_sharing
    )
    expected = loop_factors(model, model[0], x, y, cross_entropy, weight_sharing)
    assert_factors(found.layers["0"], *expected)


@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
@pytest.mark.parametrize("options", [{}, {"padding_idx": 3}, {"sparse": True}])
def test_embeddings_equal_loops(options, weight_sharing):
    model = nn.Sequential(nn.Embedding(12, 4, **options), nn.Flatten(), nn.Linear(20, 3)).eval()
    x, y = torch.randint(0, 6, (N, 5)), torch.randint(0, 3, (N,))
    x[1] = 3  # nothing but padding, if there is any
    factor = kronecker_factors(model, [(x, y)], weight_sharing=weight_sharing).layers["0"]
    assert factor.inputs.shape == (1, 12)
    assert_factors(factor, *loop_factors(model, model[0], x, y, cross_entropy, weight_sharing))


@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
def test_embedding_of_one_number_a_sample(weight_sharing):
    model = nn.Sequential(nn.Embedding(12, 4), nn.Tanh(), nn.Linear(4, 3)).eval()
    x, y = torch.randint(0, 6, (N,)), torch.randint(0, 3, (N,))
    factor = kronecker_factors(model, [(x, y)], weight_sharing=weight_sharing).layers["0"]
    assert_factors(factor, *loop_factors(model, model[0], x, y, cross_entropy, weight_sharing))


@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
def test_padding_is_no_position(weight_sharing):
    """One number and any padding is one position, and exact for a sample."""
    model = nn.Sequential(nn.Embedding(12, 4, padding_idx=0), nn.Flatten(), nn.Linear(20, 3)).eval()
    batch = torch.tensor([[0, 7, 0, 0, 0]]), torch.tensor([1])
    fisher = kronecker_factors(model, [batch], weight_sharing=weight_sharing)
    assert fisher.layers.keys() == {"0", "2"}
    assert_close(fisher.whole_diagonal(), diagonal_fisher(model, [batch]))


def test_embedding_whose_gradients_are_divided_by_frequencies():
    """With one position, nothing is repeated; with several, g is divided."""
    plain = nn.Sequential(nn.Embedding(12, 4), nn.Flatten(), nn.Linear(8, 3)).eval()
    divided = nn.Sequential(nn.Embedding(12, 4, scale_grad_by_freq=True), *plain[1:]).eval()
    divided[0].weight = plain[0].weight
    x, y = torch.tensor([[5, 5], [2, 2]]), torch.tensor([0, 2])
    found, twice = (kronecker_factors(m, [(x, y)]).layers["0"] for m in (divided, plain))
    torch.testing.assert_close(found.outputs, twice.outputs / 4)
    torch.testing.assert_close(found.inputs, twice.inputs)


@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
def test_frequencies_are_those_in_a_sample(weight_sharing):
    """Rows that several samples look up, whose sums PyTorch would divide by the number of both."""
    model = nn.Sequential(nn.Embedding(12, 4, scale_grad_by_freq=True), nn.Flatten())
    model = model.append(nn.Linear(8, 3)).eval()
    batch = torch.tensor([[5, 2], [2, 5], [5, 7]]), torch.tensor([0, 2, 1])
    factor = kronecker_factors(model, [batch], weight_sharing=weight_sharing).layers["0"]
    expected = loop_factors(model, model[0], *batch, cross_entropy, weight_sharing)
    assert_factors(factor, *expected)


class Scaled(nn.Module):
    """A linear map of twice the inputs."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in))
        self.bias = nn.Parameter(torch.randn(n_out))

    def forward(self, x):
        return nn.functional.linear(2 * x, self.weight, self.bias)


def with_rule(rule, monkeypatch):
    monkeypatch.setattr(kronecker_rules, "_rules", dict(kronecker_rules._rules))
    register_kronecker_rule(Scaled)(rule)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), Scaled(5, 4), nn.Tanh(), nn.Linear(4, 3))
    return model, torch.randn(N, 6), torch.randint(0, 3, (N,))


def test_rule_of_a_users_layer(monkeypatch):
    model, x, y = with_rule(lambda layer, a, g: (2 * a[None], g[None]), monkeypatch)
    factor = kronecker_factors(model, [(x, y)]).layers["2"]
    a = torch.cat([2 * model[:2](x), torch.ones(N, 1)], 1)
    torch.testing.assert_close(factor.inputs[0], a.T @ a / N)
    assert factor.layout.names == ("2.weight", "2.bias")


@pytest.mark.parametrize(
    "rule",
    [
        lambda layer, a, g: (a[None], g[None]),
        lambda layer, a, g: (2 * a.abs()[None], g[None]),
        lambda layer, a, g: (2 * a[None], -g[None]),
        lambda layer, a, g: (2 * a, g),
        lambda layer, a, g: (2 * a[None, :, :3], g[None]),
        lambda layer, a, g: 1 / 0,
    ],
    ids=["scale", "signs of a", "sign of g", "shapes", "too few inputs", "error"],
)
def test_rule_that_is_wrong_is_not_used(rule, monkeypatch):
    model, x, y = with_rule(rule, monkeypatch)
    found, diagonal = kronecker_factors(model, [(x, y)]), diagonal_fisher(model, [(x, y)])
    assert found.layers.keys() == {"0", "4"}
    assert_close(found.diagonal, {n: diagonal[n] for n in ("2.weight", "2.bias")})


class SkipsALayer(nn.Module):
    """Until a sample has a positive input."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x):
        first, _, skipped, _, last = self.layers
        hidden = first(x).tanh()
        return last(skipped(hidden).tanh() if (x > 0).any() else hidden[:, :4])


@pytest.mark.filterwarnings("ignore:squared gradients of")
@pytest.mark.parametrize("rule", [lambda layer, a, g: 1 / 0, lambda layer, a, g: (2 * a, g)])
def test_rule_that_fails_in_a_later_batch_is_not_used(rule, monkeypatch):
    layers, x, y = with_rule(rule, monkeypatch)
    model, x = SkipsALayer(layers).eval(), torch.cat([-x[:2].abs(), x[2:].abs()])
    batches = [(x[:2], y[:2]), (x[2:], y[2:])]
    found, diagonal = kronecker_factors(model, batches), diagonal_fisher(model, batches)
    assert found.layers.keys() == {"layers.0", "layers.4"}
    own = {n: diagonal[n] for n in ("layers.2.weight", "layers.2.bias")}
    assert all(values.any() for values in own.values())
    assert_close(found.diagonal, own)


def test_register_refuses_what_is_no_layer():
    with pytest.raises(TypeError, match="layer_types"):
        register_kronecker_rule(torch.tanh)


class MaskedLinear(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight * 0.5, self.bias)


def test_subclass_with_a_forward_of_its_own_has_no_rule():
    assert kronecker_rules.kronecker_rule(MaskedLinear(3, 3)) is None
    assert kronecker_rules.kronecker_rule(nn.Linear(3, 3)) is kronecker_rules.linear


@pytest.mark.parametrize("name", ["lenet", "convolutions", "embedding"])
@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
def test_bounded_memory_gives_the_same(name, weight_sharing, monkeypatch):
    make_model, make_x = CASES[name]
    model, x, y = make_model(), make_x(), torch.randint(0, 3, (N,))
    expected = kronecker_factors(model, [(x, y)], weight_sharing=weight_sharing)
    monkeypatch.setattr("avalanche_hnet.core.fisher.layer_rows._BUDGET", 1)
    monkeypatch.setattr("avalanche_hnet.core.fisher.input_sums._BUDGET", 1)
    monkeypatch.setattr("avalanche_hnet.core.fisher.input_sums._FEWEST_CHANNELS", 1)
    monkeypatch.setattr("avalanche_hnet.core.fisher.input_sums._ALL_BUT_SYMMETRIC", 2)
    monkeypatch.setattr("avalanche_hnet.core.fisher.gram_sums._BLOCK", 5)
    found = kronecker_factors(model, [(x, y)], weight_sharing=weight_sharing)
    for prefix, factor in found.layers.items():
        assert_factors(factor, expected.layers[prefix].inputs, expected.layers[prefix].outputs)
