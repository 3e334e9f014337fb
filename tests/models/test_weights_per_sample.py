"""Kronecker factors of hypernetworks, against loops over samples and chunks."""

import pytest
import torch
from torch import nn

from avalanche_hnet import diagonal_fisher, kronecker_factors
from avalanche_hnet.models import weights_per_sample
from avalanche_hnet.models.weights_per_sample import WeightsPerSample
from tests.support.hypernets import adapted, hyper_model
from tests.support.hypernetwork_oracles import loop_factors, loop_rows
from tests.support.models import mlp
from tests.support.oracles import assert_close
from tests.support.streams import task_stream
from tests.support.structures import INPUTS, OUTPUTS, Structured, halves
from tests.support.targets import TARGETS, partial, stream_for, with_batch_norm

pytestmark = pytest.mark.usefixtures("float64")

HYPERNETS = {
    "full": {},
    "hyperfan": {"init": "hyperfan"},
    "one layer": {"hidden": (5,)},
    "chunks": {"chunk_size": 13},
    "chunks, hyperfan": {"chunk_size": 12, "init": "hyperfan"},
    "chunks of tasks": {"chunk_size": 25, "task_specific_chunk_embeddings": True},
}
HEADS = {
    "own": {},
    "multi-head": {"multi_head": True},
    "reused": {"multi_head": True, "reuse_units": True},
}


def make(hypernet="full", head="own", target=None, n_tasks=3):
    stream = task_stream(n_tasks, offset=head != "own").train_stream
    target = mlp(n_out=2 * n_tasks if head == "multi-head" else 2) if target is None else target
    torch.manual_seed(0)
    hypernet = HYPERNETS[hypernet] if isinstance(hypernet, str) else hypernet
    return adapted(hyper_model(target, hypernet=hypernet, **HEADS[head]), stream)


def batch(n_tasks=3, n=11, head="own"):
    """Samples of several tasks, of which one has twice as many."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 6, generator=generator)
    labels = torch.arange(n) % (n_tasks + 1) % n_tasks
    y = torch.randint(2, (n,), generator=generator)
    return x, y if head == "own" else y + 2 * labels, labels


def factors_of(model, data, **options):
    per_sample = WeightsPerSample(model)
    batches = per_sample.small(lambda: iter([data]))
    return per_sample.of_hypernetwork(kronecker_factors(per_sample, batches, **options))


def diagonal_of(model, data):
    """θ's, as the diagonal regulariser gets it."""
    fisher = model.of_hypernetwork(diagonal_fisher(model, [data]))
    return {n: fisher[n] for n, p in model.hypernetwork.shared_parameters().items() if n in fisher}


def assert_rest_is_the_diagonal(found, diagonal):
    in_layers = {n for factor in found.layers.values() for n in factor.layout.names}
    assert_close(found.diagonal, {n: d for n, d in diagonal.items() if n not in in_layers})


@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("hypernet", HYPERNETS)
def test_factors_equal_a_loop_over_samples_and_chunks(hypernet, head, weight_sharing):
    model, data = make(hypernet, head), batch(head=head)
    found = factors_of(model, data, weight_sharing=weight_sharing)
    model.eval()
    expected = loop_factors(model, *data, weight_sharing)
    assert (
        found.layers.keys()
        == expected.keys()
        == {"trunk.0", "trunk.2"} - ({"trunk.2"} if hypernet == "one layer" else set())
    )
    for name, (inputs, outputs) in expected.items():
        torch.testing.assert_close(found.layers[name].inputs, inputs, rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(found.layers[name].outputs, outputs, rtol=1e-9, atol=1e-13)
    assert_rest_is_the_diagonal(found, diagonal_of(model, data))
    assert "output.weight" in found.diagonal
    assert ("chunk_embeddings" in found.diagonal) == (hypernet in ("chunks", "chunks, hyperfan"))


@pytest.mark.parametrize("n_samples", [1, 7])
def test_with_one_chunk_and_one_task_the_product_is_the_fisher(n_samples):
    model = make()
    x, y, labels = batch(n=n_samples)
    found = factors_of(model, (x, y, torch.zeros_like(labels))).layers
    for name, factor in found.items():
        kron = torch.kron(factor.outputs[0], factor.inputs[0])
        total = torch.zeros_like(kron)
        for n in range(n_samples):
            a, g = loop_rows(model.eval(), x[n : n + 1], y[n : n + 1], 0)[name]
            gradient = (g.T @ a).flatten()
            total += torch.outer(gradient, gradient) / n_samples
        torch.testing.assert_close(kron, total, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("hypernet", ["full", "hyperfan", "one layer"])
def test_with_one_chunk_and_one_task_the_diagonal_is_that_without_products(hypernet):
    model, data = make(hypernet, n_tasks=1), batch(n_tasks=1)
    assert_close(factors_of(model, data).whole_diagonal(), diagonal_of(model, data))


@pytest.mark.parametrize("options", [{}, {"chunk_size": 13}])
def test_layers_under_spectral_normalisation_keep_their_diagonal(options):
    model, data = make(options | {"spectral_norm": True}), batch()
    found = factors_of(model, data)
    assert not found.layers
    assert_close(found.diagonal, diagonal_of(model, data))


@pytest.mark.parametrize("options", [{}, {"chunk_size": 13}])
def test_without_hidden_layers_all_is_diagonal(options):
    model, data = make(options | {"hidden": ()}), batch()
    found = factors_of(model, data)
    assert not found.layers
    assert_close(found.diagonal, diagonal_of(model, data))


def test_activations_with_parameters_are_diagonal():
    model, data = make({"activation": nn.PReLU}), batch()
    found = factors_of(model, data)
    assert found.layers.keys() == {"trunk.0", "trunk.2"}
    assert {"trunk.1.weight", "trunk.3.weight"} < found.diagonal.keys()
    assert_rest_is_the_diagonal(found, diagonal_of(model, data))


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "resnet18"])
@pytest.mark.filterwarnings("ignore:squared gradients of")
def test_any_target(name):
    torch.manual_seed(0)
    build, shape = TARGETS[name]
    stream, target = stream_for(shape, n_samples=4).train_stream, build()
    chunk_size = -(-sum(p.numel() for p in target.parameters()) // 8)
    hypernet = {"chunk_size": chunk_size, "hidden": (4,), "activation": nn.Tanh}
    model = adapted(hyper_model(target, hypernet=hypernet), stream)
    data = next(iter(torch.utils.data.DataLoader(stream[1].dataset, batch_size=4)))
    x, y, labels = data
    if x.is_floating_point():
        x = x.double()
    found = factors_of(model, (x, y, labels))
    expected = loop_factors(model.eval(), x, y, labels, "expand")
    assert found.layers.keys() == {"trunk.0"}
    for factor, (inputs, outputs) in zip(found.layers.values(), expected.values(), strict=True):
        torch.testing.assert_close(factor.inputs, inputs, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(factor.outputs, outputs, rtol=1e-8, atol=1e-12)
    assert_rest_is_the_diagonal(found, diagonal_of(model, (x, y, labels)))


class Squeezing(nn.Module):
    """Loses the dimension of a batch of one."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.last(self.layer(x)[:, :, None].tanh().squeeze())


def test_a_target_that_squeezes():
    model, data = make(target=Squeezing()), batch()
    found = factors_of(model, data)
    assert found.layers.keys() == {"trunk.0", "trunk.2"}
    assert_rest_is_the_diagonal(found, diagonal_of(model, data))
    expected = loop_factors(make(target=Unsqueezing()).eval(), *data, "expand")
    for name, (_, outputs) in expected.items():
        torch.testing.assert_close(found.layers[name].outputs, outputs, rtol=1e-9, atol=1e-13)


class Unsqueezing(Squeezing):
    def forward(self, x):
        return self.last(self.layer(x).tanh())


@pytest.mark.parametrize("remaining", ["shared", "per_task", "frozen", "frozen_after_first"])
@pytest.mark.filterwarnings("ignore:squared gradients of")
def test_partial_hypernetworks(remaining):
    torch.manual_seed(0)
    model, data = (
        adapted(partial(remaining, with_batch_norm()), task_stream(3).train_stream),
        batch(),
    )
    found = factors_of(model, data)
    expected = loop_factors(model.eval(), *data, "expand")
    assert found.layers.keys() == expected.keys()
    for name, (inputs, outputs) in expected.items():
        torch.testing.assert_close(found.layers[name].inputs, inputs, rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(found.layers[name].outputs, outputs, rtol=1e-9, atol=1e-13)
    assert_rest_is_the_diagonal(found, diagonal_of(model, data))


@pytest.mark.parametrize(("inputs", "outputs"), [*zip(INPUTS, [*OUTPUTS, "dict"], strict=True)])
def test_inputs_and_outputs_in_structures(inputs, outputs):
    net = mlp(n_out=2)
    model = make(target=Structured(net, OUTPUTS[outputs]))
    x, y, labels = batch()
    found = factors_of(model, (INPUTS[inputs](*halves(x)), y, labels))
    expected = factors_of(make(), (x, y, labels))
    assert_close(found.whole_diagonal(), expected.whole_diagonal())


@pytest.mark.parametrize("hypernet", HYPERNETS)
@pytest.mark.parametrize("head", HEADS)
def test_outputs_are_the_models(hypernet, head):
    model = make(hypernet, head).eval()
    per_sample = WeightsPerSample(model).eval()
    x = torch.randn(5, 6)
    for label in (0, 2):
        torch.testing.assert_close(per_sample(x, label), model(x, label))
        torch.testing.assert_close(per_sample(x, torch.full((5,), label)), model(x, label))


@pytest.mark.parametrize("hypernet", ["full", "chunks"])
def test_only_so_many_weights_are_generated_at_a_time(monkeypatch, hypernet):
    model, data = make(hypernet), batch(n=30)
    expected, sizes = factors_of(model, data), []
    run_each = type(model._runner).run_each

    def recorded(self, x, number, weights, **options):
        sizes.append(weights.numel())
        return run_each(self, x, number, weights, **options)

    monkeypatch.setattr(type(model._runner), "run_each", recorded)
    for budget, largest in ((4 * 74, 4), (1, 1)):
        sizes.clear()
        monkeypatch.setattr(weights_per_sample, "_BUDGET", budget)
        found = factors_of(model, data)
        assert model.hypernetwork.layout.n_weights == 74
        # A trial of rules takes two samples.
        assert max(sizes) <= max(2, largest) * 74
        for name, factor in expected.layers.items():
            assert_close(
                {"A": found.layers[name].inputs, "G": found.layers[name].outputs},
                {"A": factor.inputs, "G": factor.outputs},
            )
        assert_close(found.diagonal, expected.diagonal)


@pytest.mark.parametrize("hypernet", ["full", "chunks", "chunks of tasks"])
def test_all_goes_by_rules(monkeypatch, hypernet):
    """No gradient of a single sample is formed but in the trial."""
    model, data = make(hypernet), batch()

    def refuse(self, factor):
        assert not self.names
        return iter(())

    for method in ("by_vmap.ByVmap", "by_loop.ByLoop"):
        monkeypatch.setattr(f"avalanche_hnet.core.fisher.{method}.gradients", refuse)
    assert factors_of(model, data).layers


def test_frozen_parameters_are_left_out_and_nothing_changes():
    model = make("chunks")
    shared = model.hypernetwork.shared_parameters()
    for name in ("trunk.0.weight", "trunk.2.bias", "chunk_embeddings", "output.bias"):
        shared[name].requires_grad_(False)
    modes = {n: m.training for n, m in model.named_modules()}
    before = {n: p.clone() for n, p in model.state_dict().items() if isinstance(p, torch.Tensor)}
    found = factors_of(model, batch())
    assert found.layers.keys() == {"trunk.2"}
    assert found.layers["trunk.2"].layout.bias is None
    assert found.diagonal.keys() == {"trunk.0.bias", "output.weight"}
    assert {n: m.training for n, m in model.named_modules()} == modes
    for name, tensor in before.items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert all(p.grad is None for p in model.parameters())


def test_the_exact_kind_takes_every_label():
    """It is the expectation of the empirical one."""
    model, (x, _, labels) = make("chunks"), batch()
    with torch.no_grad():
        p = model.eval()(x, labels).softmax(1)
    found = factors_of(model, (x, torch.zeros(len(x), dtype=torch.long), labels), kind="exact")
    total = {}
    for n in range(len(x)):
        for label in range(2):
            y = torch.tensor([label])
            one = loop_factors(model, x[n : n + 1], y, labels[n : n + 1], "expand")
            for name, (_, outputs) in one.items():
                total[name] = total.get(name, 0) + p[n, label] * outputs / len(x)
    assert_close({n: f.outputs for n, f in found.layers.items()}, total)


@pytest.mark.parametrize("hypernet", ["full", "chunks"])
def test_in_float32(hypernet):
    model, (x, y, labels) = make(hypernet), batch()
    expected = factors_of(model, (x, y, labels))
    found = factors_of(model.float(), (x.float(), y, labels))
    for name, factor in expected.layers.items():
        outputs = found.layers[name].outputs
        assert outputs.dtype == torch.float32
        torch.testing.assert_close(outputs.double(), factor.outputs, rtol=1e-4, atol=1e-7)
