import warnings

import pytest
import torch
from avalanche.models import MultiHeadClassifier
from curvlinops import FisherType, KFACLinearOperator
from torch import nn

from avalanche_hnet import Categorical, Gaussian, diagonal_fisher, kronecker_factors
from tests.support import models
from tests.support.cases import CASES, N, in_batches
from tests.support.kronecker_oracles import assert_factors, loop_factors
from tests.support.oracles import assert_close
from tests.support.streams import task_stream

pytestmark = pytest.mark.usefixtures("float64")
cross_entropy = nn.functional.cross_entropy

# By case, the layers whose rules hold; the parameters of all others have a diagonal.
LAYERS = {
    "mlp": {"0", "2"},
    "lenet": {"0.0", "0.3", "1", "3"},
    "convolutions": {"0", "2", "3", "5"},
    "conv1d": {"0", "2"},
    "conv3d": {"0", "2"},
    "normalisations": {"0", "5", "8"},
    "embedding": {"0", "2", "4"},
    "transformer": {"0", "1.linear1", "1.linear2", "3"},
    "used twice": {"first", "last"},
    "tied": set(),
    "weight outside its layer": set(),
    "own parameter": {"last"},
    "samples not first": {"last"},
    "flattened": {"last"},
    "recurrent": {"layer", "last"},
    "incremental": {"classifier"},
}


@pytest.fixture(params=CASES)
def case(request):
    make_model, make_x = CASES[request.param]
    model, x = make_model(), make_x()
    n_classes = model.eval()(x).shape[1]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "squared gradients of lstm", UserWarning)
        yield request.param, model, x, torch.randint(0, n_classes, (N,))


def names_of(fisher):
    layers = [factor.layout.names for factor in fisher.layers.values()]
    return [*fisher.diagonal, *(name for names in layers for name in names)]


@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
def test_equals_loops_over_samples_and_positions(case, weight_sharing):
    name, model, x, y = case
    found = kronecker_factors(model, in_batches(x, y), weight_sharing=weight_sharing)
    assert found.layers.keys() == LAYERS[name]
    for prefix, factor in found.layers.items():
        layer = model.get_submodule(prefix)
        assert_factors(factor, *loop_factors(model, layer, x, y, cross_entropy, weight_sharing))
    diagonal = diagonal_fisher(model, [(x, y)])
    assert sorted(names_of(found)) == sorted(diagonal)
    assert_close(found.diagonal, {n: diagonal[n] for n in found.diagonal})


def test_exact_kind_equals_the_expectation_over_labels(case):
    _, model, x, _ = case
    found = kronecker_factors(model, in_batches(x, torch.zeros(N).long()), kind="exact")
    p = model(x).softmax(1).detach()
    for prefix, factor in found.layers.items():
        layer, outputs = model.get_submodule(prefix), 0
        for n in range(N):
            for label in range(p.shape[1]):
                inputs, of_label = loop_factors(
                    model, layer, x[n : n + 1], torch.tensor([label]), cross_entropy
                )
                outputs = outputs + p[n, label] * of_label / N
        inputs, _ = loop_factors(model, layer, x, torch.zeros(N).long(), cross_entropy)
        assert_factors(factor, inputs, outputs)
    diagonal = diagonal_fisher(model, [(x, torch.zeros(N).long())], kind="exact")
    assert_close(found.diagonal, {n: diagonal[n] for n in found.diagonal})


def test_sampled_kind_equals_loops_on_the_same_draws(case):
    _, model, x, y = case
    found = kronecker_factors(
        model, [(x, y)], kind="sampled", generator=torch.Generator().manual_seed(3)
    )
    drawn = Categorical().sample(model(x), torch.Generator().manual_seed(3))
    for prefix, factor in found.layers.items():
        layer = model.get_submodule(prefix)
        assert_factors(factor, *loop_factors(model, layer, x, drawn, cross_entropy))


@pytest.mark.parametrize("name", ["mlp", "incremental", "used twice", "own parameter"])
def test_one_sample_without_sharing_is_exact(name):
    make_model, make_x = CASES[name]
    model, x, y = make_model(), make_x()[:1], torch.tensor([1])
    found = kronecker_factors(model, [(x, y)])
    diagonal = diagonal_fisher(model, [(x, y)])
    for factor in found.layers.values():
        assert_close(factor.diagonal(), {n: diagonal[n] for n in factor.layout.names})
        gradients = torch.autograd.grad(
            cross_entropy(model(x), y), [model.get_parameter(n) for n in factor.layout.names]
        )
        w = factor.layout.matrices(dict(zip(factor.layout.names, gradients, strict=True)))[0]
        full = torch.einsum("oi,pj->oipj", w, w)
        product = torch.einsum("op,ij->oipj", factor.outputs[0], factor.inputs[0])
        torch.testing.assert_close(product, full, rtol=1e-9, atol=1e-12)


def without_sharing(n_out):
    return nn.Sequential(
        nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4, bias=False), nn.Linear(4, n_out)
    )


def with_convolutions(n_out):
    return nn.Sequential(
        nn.Conv2d(2, 17, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(17, 3, 3, padding=1),
        nn.Conv2d(3, 4, 3, stride=2, padding=1, dilation=2, bias=False),
        nn.Flatten(),
        nn.Linear(36, n_out),
    )


@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
@pytest.mark.parametrize("kind", ["empirical", "exact"])
@pytest.mark.parametrize(
    ("make_model", "shape"), [(without_sharing, (6,)), (with_convolutions, (2, 8, 8))]
)
def test_equals_curvlinops(make_model, shape, kind, weight_sharing):
    model, x, y = make_model(3).eval(), torch.randn(N, *shape), torch.randint(0, 3, (N,))
    operator = KFACLinearOperator(
        model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        [(x[:4], y[:4]), (x[4:], y[4:])],
        fisher_type={"empirical": FisherType.EMPIRICAL, "exact": FisherType.TYPE2}[kind],
        kfac_approx=weight_sharing,
        separate_weight_and_bias=False,
    )
    found = kronecker_factors(model, in_batches(x, y), kind=kind, weight_sharing=weight_sharing)
    names = [name for name, _ in model.named_parameters()]
    vectors = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    expected = operator @ [vectors[name] for name in names]
    products = {}
    for factor in found.layers.values():
        products |= factor.layout.tensors(
            factor.outputs @ factor.layout.matrices(vectors) @ factor.inputs
        )
    assert_close({name: products[name] for name in names}, dict(zip(names, expected, strict=True)))


def test_gaussian_likelihood_equals_loops():
    model, x, y = models.mlp(), torch.randn(N, 6), torch.randn(N, 3)
    found = kronecker_factors(model, [(x, y)], likelihood=Gaussian(0.3))
    for prefix, factor in found.layers.items():
        layer = model.get_submodule(prefix)
        expected = loop_factors(
            model, layer, x, y, lambda o, t: ((o - t) ** 2).sum() / (2 * 0.3**2)
        )
        assert_factors(factor, *expected)


def test_a_head_has_the_inputs_of_its_task_only():
    model = models.MultiHead(MultiHeadClassifier(8))
    for experience in task_stream(3).train_stream:
        model.output["head"].adaptation(experience)
    model.eval()
    x, y = torch.randn(N, 6), torch.randint(0, 2, (N,))
    labels = torch.tensor([0, 2, 0, 0, 0, 2, 2, 2, 0])
    found = kronecker_factors(model, in_batches(x, y, labels))
    prefix = "output.head.classifiers.{}.classifier"
    assert {prefix.format(task) for task in range(3)} < found.layers.keys()
    for name in ("features.1", prefix.format(0), prefix.format(2)):
        expected = loop_factors(
            model, model.get_submodule(name), x, y, cross_entropy, labels=labels
        )
        assert_factors(found.layers[name], *expected)
    unused = found.layers[prefix.format(1)]
    assert not unused.inputs.any()
    assert not unused.outputs.any()
    assert unused.outputs.shape == (1, 2, 2)


def test_frozen_parameters_take_no_part():
    model, x, y = models.mlp(), torch.randn(N, 6), torch.randint(0, 3, (N,))
    model[0].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    found = kronecker_factors(model, [(x, y)])
    assert found.layers.keys() == {"2"}
    assert found.layers["2"].layout.names == ("2.weight",)
    inputs, outputs = loop_factors(model, model[2], x, y, cross_entropy)
    assert_factors(found.layers["2"], inputs[:, :-1, :-1], outputs)
    assert_close(found.diagonal, {"0.bias": diagonal_fisher(model, [(x, y)])["0.bias"]})


class CalledTwiceForSome(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        first = self.layer(x)
        again = self.layer(first) * x[:, :1].relu() + first if (x > 0).any() else first
        return self.last(again)


@pytest.mark.filterwarnings("ignore:squared gradients of layer")
@pytest.mark.parametrize("once_only", [False, True])
@pytest.mark.parametrize("options", [{}, {"max_samples": 2 * N}, {"kind": "sampled"}])
def test_layer_that_loses_its_trust_later_has_its_whole_diagonal(once_only, options):
    model, y = CalledTwiceForSome().eval(), torch.randint(0, 3, (2 * N,))
    x = torch.cat([-torch.rand(N, 3), torch.rand(N, 3)])
    batches = [(x[:N], y[:N]), (x[N:], y[N:])]
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    found = kronecker_factors(
        model, iter(batches) if once_only else batches, generator=generators[0], **options
    )
    diagonal = diagonal_fisher(model, batches, generator=generators[1], **options)
    assert found.layers.keys() == {"last"}
    assert_close(found.diagonal, {n: diagonal[n] for n in ("layer.weight", "layer.bias")})
    assert torch.equal(generators[0].get_state(), generators[1].get_state())
    whole = found.layers["last"].diagonal()["last.bias"]
    torch.testing.assert_close(whole, diagonal["last.bias"])  # A is one there


class RefusesVmap(nn.Module):
    """``vmap`` can follow it for negative inputs only."""

    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 3), nn.Parameter(torch.randn(3))
        self.refuses = False

    def forward(self, x):
        if not torch._C._functorch.is_batchedtensor(x):
            self.refuses = bool((x > 0).any())
        elif self.refuses:
            raise RuntimeError("not under vmap")
        return self.layer(x) * self.scale


def test_factors_are_added_once_where_vmap_fails():
    model = RefusesVmap().eval()
    x, y = torch.cat([-torch.rand(4, 3), torch.rand(4, 3)]), torch.randint(0, 3, (8,))
    with pytest.warns(UserWarning, match="scale"):
        found = kronecker_factors(model, [(x[:4], y[:4]), (x[4:], y[4:])])
    assert_factors(found.layers["layer"], *loop_factors(model, model.layer, x, y, cross_entropy))


def test_half_precision_is_summed_in_single():
    model = nn.Linear(6, 3).bfloat16()
    x, y = torch.randn(500, 6).bfloat16(), torch.randint(0, 3, (500,))
    factor = kronecker_factors(model, in_batches(x, y)).layers[""]
    assert factor.inputs.dtype == factor.outputs.dtype == torch.float32
    expected = kronecker_factors(model.float(), [(x.float(), y)]).layers[""]
    torch.testing.assert_close(factor.inputs, expected.inputs, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(factor.outputs, expected.outputs, rtol=0.05, atol=0.01)


def test_sequences_of_different_lengths():
    model = CASES["recurrent"][0]().eval()
    model.lstm.requires_grad_(False)
    x, y = [torch.randn(3, length, 5) for length in (2, 4)], torch.randint(0, 3, (6,))
    found = kronecker_factors(model, [(x[0], y[:3]), (x[1], y[3:])]).layers["layer"]
    parts = [
        loop_factors(model, model.layer, part, labels, cross_entropy)
        for part, labels in zip(x, y.split(3), strict=True)
    ]
    assert_factors(found, *(sum(both) / 2 for both in zip(*parts, strict=True)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "true"}, "kind must be one of .*'true'"),
        ({"weight_sharing": "mean"}, "weight_sharing must be one of .*'mean'"),
        ({"max_samples": 0}, "max_samples must be an integer of at least 1, got 0"),
        ({"batches": []}, "at least one sample"),
        ({"model": nn.ReLU()}, "no parameter that requires grad"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    good = {"model": models.mlp(), "batches": [(torch.randn(2, 6), torch.tensor([0, 1]))]}
    arguments = good | arguments
    with pytest.raises(ValueError, match=message):
        kronecker_factors(arguments.pop("model"), arguments.pop("batches"), **arguments)
