import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from avalanche_hnet import ChunkedHyperNetwork, HyperNetwork
from avalanche_hnet.core.hypernetworks.hyperfan import wanted_statistics
from avalanche_hnet.core.hypernetworks.output_layer import OutputLayer
from avalanche_hnet.core.hypernetworks.weight_layout import WeightLayout
from tests import models

pytestmark = pytest.mark.usefixtures("float64")

W = 84  # weights of the target


def target():
    return models.mlp(n_in=5, n_out=4)


CHUNKS = {
    "full": None,
    "chunks that divide": {"chunk_size": 12},
    "chunks that do not divide": {"chunk_size": 13},
    "chunks of one": {"chunk_size": 1},
    "one chunk": {"chunk_size": W},
    "chunks of tasks": {"chunk_size": 25, "task_specific_chunk_embeddings": True},
}


def make(kind="full", n_tasks=3, of=None, **options):
    """A hypernetwork of one of the kinds, with tasks."""
    of = target() if of is None else of
    options = {"embedding_dim": 3, "hidden": (6, 5)} | options
    if CHUNKS[kind] is None:
        hypernetwork = HyperNetwork(of, **options)
    else:
        hypernetwork = ChunkedHyperNetwork(
            of, **{"chunk_embedding_dim": 2} | CHUNKS[kind] | options
        )
    for _ in range(n_tasks):
        hypernetwork.add_task()
    return hypernetwork


def authors(hypernetwork, activation):
    """The authors' hypernetwork with the same weights, and our names of its parameters."""
    hnets = pytest.importorskip("hypnettorch.hnets")
    options = {
        "cond_in_size": hypernetwork.embedding_dim,
        "layers": [m.out_features for m in hypernetwork.trunk if isinstance(m, nn.Linear)],
        "activation_fn": activation,
        "num_cond_embs": hypernetwork.n_tasks,
        "verbose": False,
    }
    shapes = [list(shape) for shape in hypernetwork.layout.shapes.values()]
    if isinstance(hypernetwork, ChunkedHyperNetwork):
        of_tasks = hypernetwork.task_specific_chunk_embeddings
        chunks = (
            hypernetwork.task_chunk_embeddings[0] if of_tasks else hypernetwork.chunk_embeddings
        )
        theirs = hnets.ChunkedHMLP(
            shapes,
            hypernetwork.chunk_size,
            chunk_emb_size=chunks.shape[1],
            cond_chunk_embs=of_tasks,
            **options,
        )
    else:
        theirs = hnets.HMLP(shapes, **options)
    parameters = dict(hypernetwork.named_parameters())
    order = ("embeddings", "trunk", "output", "chunk_embeddings", "task_chunk_embeddings")
    names = [n for part in order for n in parameters if n.split(".")[0] == part]
    with torch.no_grad():
        for name, parameter in zip(names, theirs.internal_params, strict=True):
            parameter.copy_(as_theirs(name, parameters[name]))
    return theirs, names


def as_theirs(name, tensor):
    """Of our output layer they have the transpose."""
    return tensor.T if name == "output.weight" else tensor


def loop_weights(hypernetwork, task, parameters, activation=torch.tanh):
    """The weights (W,) of one task from ``parameters``, chunk by chunk and layer by layer."""
    layers = [n for n, m in hypernetwork.trunk.named_children() if isinstance(m, nn.Linear)]
    chunks = []
    for k in range(hypernetwork.n_chunks):
        z = parameters[f"embeddings.{task}"]
        for of_chunks in ("chunk_embeddings", f"task_chunk_embeddings.{task}"):
            if of_chunks in parameters:
                z = torch.cat([parameters[of_chunks][k], z])
        for layer in layers:
            weight, bias = (parameters[f"trunk.{layer}.{p}"] for p in ("weight", "bias"))
            z = activation(weight @ z + bias)
        chunks.append(z @ parameters["output.weight"] + parameters["output.bias"])
    return torch.cat(chunks)[: hypernetwork.layout.n_weights]


def assert_same(found, expected, tolerance=1e-12):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# What is generated


@pytest.mark.parametrize("hidden", [(6, 5), (6,), (), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid])
@pytest.mark.parametrize("kind", CHUNKS)
def test_weights_equal_those_of_the_authors(kind, activation, hidden):
    hypernetwork = make(kind, hidden=hidden, activation=activation)
    theirs, _ = authors(hypernetwork, activation())
    expected = theirs.forward(cond_id=[2, 0, 2], ret_format="flattened")
    assert_same(hypernetwork([2, 0, 2]), expected)


@pytest.mark.parametrize("hidden", [(6, 5), ()], ids=str)
@pytest.mark.parametrize("kind", CHUNKS)
def test_weights_equal_those_of_a_loop_over_tasks_chunks_and_layers(kind, hidden):
    hypernetwork = make(kind, hidden=hidden, activation=nn.Tanh)
    parameters = dict(hypernetwork.named_parameters())
    expected = torch.stack([loop_weights(hypernetwork, task, parameters) for task in (1, 2, 0)])
    assert_same(hypernetwork([1, 2, 0]), expected)


@pytest.mark.parametrize("kind", CHUNKS)
def test_tasks_may_be_a_number_a_sequence_or_a_tensor(kind):
    hypernetwork = make(kind)
    all_tasks = hypernetwork(range(3))
    assert all_tasks.shape == (3, W)
    assert_same(hypernetwork(1), all_tasks[1:2])
    assert_same(hypernetwork((2, 1)), all_tasks[[2, 1]])
    assert_same(hypernetwork(torch.tensor([0, 2, 0])), all_tasks[[0, 2, 0]])
    assert_same(hypernetwork(torch.tensor(1)), all_tasks[1:2])


@pytest.mark.parametrize("kind", CHUNKS)
def test_given_parameters_take_the_place_of_its_own(kind):
    hypernetwork, other = make(kind), make(kind)
    given = {n: p for n, p in other.named_parameters() if "bias" not in n}
    found = hypernetwork.product(hypernetwork.factors([2, 0], given))
    hypernetwork.load_state_dict(given, strict=False)
    assert_same(found, hypernetwork([2, 0]))


@pytest.mark.parametrize("kind", CHUNKS)
def test_parameters_are_the_tasks_or_shared_and_all_are_trained(kind):
    hypernetwork = make(kind)
    hypernetwork([0, 2]).square().sum().backward()
    shared = hypernetwork.shared_parameters()
    of_tasks = [hypernetwork.task_parameters(task) for task in range(3)]
    names = [n for part in (shared, *of_tasks) for n in part]
    assert sorted(names) == sorted(n for n, _ in hypernetwork.named_parameters())
    assert set(of_tasks[1]) == {n for n in names if n.endswith("embeddings.1")}
    for parameters in (shared, of_tasks[0], of_tasks[2]):
        assert all(p.grad.abs().sum() > 0 for p in parameters.values())
    assert all(p.grad is None for p in of_tasks[1].values())


# The layout


@settings(max_examples=50, deadline=None)
@given(
    # with parameters of no dimension, too
    shapes=st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=5),
    leading=st.lists(st.integers(1, 3), max_size=2),
)
def test_views_are_the_inverse_of_flatten(shapes, leading):
    module = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in shapes])
    layout = WeightLayout(module)
    flat = layout.flatten(dict(module.named_parameters()))
    assert flat.shape == (layout.n_weights,) == (sum(p.numel() for p in module),)
    for (name, view), parameter in zip(layout.views(flat).items(), module, strict=True):
        assert torch.equal(view, module.get_parameter(name))
        assert torch.equal(view, parameter)
    many = torch.randn(*leading, layout.n_weights)
    views = layout.views(many)
    for index in torch.zeros(leading).add(1).nonzero().tolist():
        of_one = {name: view[tuple(index)] for name, view in views.items()}
        any_order = {"other": torch.zeros(3)} | dict(reversed(of_one.items()))
        assert torch.equal(layout.flatten(any_order), many[tuple(index)])
    many.zero_()
    assert not any(view.any() for view in views.values())


@pytest.mark.parametrize(
    ("generate", "names"),
    [
        ("*", ["0.weight", "0.bias", "2.weight", "2.bias"]),
        ("2.*", ["2.weight", "2.bias"]),
        (["*.bias"], ["0.bias", "2.bias"]),
        (("2.bias", "?.weight"), ["0.weight", "2.weight", "2.bias"]),
    ],
)
def test_what_the_patterns_name_is_generated_in_the_order_of_the_module(generate, names):
    hypernetwork = make(generate=generate)
    shapes = {n: p.shape for n, p in target().named_parameters() if n in names}
    assert list(hypernetwork.layout.shapes.items()) == [(n, shapes[n]) for n in names]
    assert hypernetwork(0).shape == (1, sum(s.numel() for s in shapes.values()))


def test_frozen_parameters_are_not_generated():
    of = target()
    of[0].requires_grad_(False)
    assert list(make(of=of).layout.shapes) == ["2.weight", "2.bias"]
    assert list(make(of=of, generate="*.bias").layout.shapes) == ["2.bias"]


def test_tied_parameters_are_generated_once():
    of = models.TiedWeights()
    hypernetwork = make(of=of)
    assert list(hypernetwork.layout.shapes) == ["encoder.weight"]
    x, weights = torch.randint(0, 12, (7, 5)), hypernetwork.layout.views(hypernetwork(1)[0])
    found = functional_call(of, weights, (x,))
    with torch.no_grad():
        of.encoder.weight.copy_(weights["encoder.weight"])
    assert_same(found, of(x))


@pytest.mark.parametrize(
    ("make_target", "x"),
    [(models.lenet, (2, 1, 16, 16)), (models.OwnParameter, (2, 6)), (models.Recurrent, (2, 4, 5))],
)
def test_any_module_runs_on_its_views(make_target, x):
    of, x = make_target(), torch.randn(x)
    layout = WeightLayout(of)
    flat = layout.flatten(dict(of.named_parameters()))
    expected = of(x)
    nn.utils.vector_to_parameters(torch.zeros(layout.n_weights), of.parameters())
    assert_same(functional_call(of, layout.views(flat), (x,)), expected)


def test_target_is_neither_kept_nor_changed():
    of = target()
    before = copy.deepcopy(of.state_dict())
    hypernetwork = make(of=of, init="hyperfan")
    assert all(torch.equal(before[n], t) for n, t in of.state_dict().items())
    own = {t.data_ptr() for t in of.parameters()}
    assert not own & {t.data_ptr() for t in hypernetwork.state_dict().values()}
    assert not any(isinstance(value, nn.Module) for value in vars(hypernetwork).values())


# Tasks and their embeddings


@pytest.mark.parametrize("kind", CHUNKS)
def test_a_new_task_changes_no_other(kind):
    hypernetwork = make(kind)
    before = hypernetwork(range(3))
    assert hypernetwork.add_task() == 3
    assert hypernetwork.n_tasks == 4
    after = hypernetwork(range(4))
    assert_same(after[:3], before)
    assert not torch.isclose(after[3], before).all(1).any()


@pytest.mark.parametrize("kind", ["full", "chunks that divide", "chunks of tasks"])
def test_embeddings_depend_on_the_seed_at_construction_and_the_tasks_number_only(kind):
    torch.manual_seed(1)
    early = make(kind, n_tasks=0)
    torch.manual_seed(1)
    late = make(kind, n_tasks=0)
    other = make(kind, n_tasks=3)
    for _ in range(3):
        early.add_task()
    state = torch.random.get_rng_state()
    late.add_task()
    assert torch.equal(torch.random.get_rng_state(), state)
    for seed in (5, 6):
        torch.manual_seed(seed)
        late([0])
        late.add_task()
    for name, embedding in early.named_parameters():
        assert torch.equal(embedding, late.get_parameter(name))
        if "embeddings" in name:
            assert not torch.isclose(embedding, other.get_parameter(name)).any()


@pytest.mark.parametrize("kind", ["chunks that divide", "chunks of tasks"])
def test_embeddings_are_independent_and_have_the_wanted_deviation(kind):
    size = 1001
    hypernetwork = make(
        kind,
        chunk_size=12,  # 7 chunks, so that all embeddings are of one size
        embedding_dim=size,
        chunk_embedding_dim=size // 7,
        embedding_std=0.3,
        chunk_embedding_std=2.0,
    )
    drawn = {n: p.flatten() for n, p in hypernetwork.named_parameters() if "embeddings" in n}
    assert len(drawn) == (4 if kind == "chunks that divide" else 6)
    for name, values in drawn.items():
        std = 2.0 if "chunk" in name else 0.3
        assert abs(values.mean()) < 4 * std / size**0.5
        assert abs(values.std() / std - 1) < 4 / (2 * size) ** 0.5
    between = torch.corrcoef(torch.stack([*drawn.values()])).fill_diagonal_(0)
    assert between.abs().max() < 4 / size**0.5
    of_chunks = next(p for n, p in hypernetwork.named_parameters() if "chunk_embeddings" in n)
    assert torch.corrcoef(of_chunks).fill_diagonal_(0).abs().max() < 5 / (size // 7) ** 0.5


def test_no_deviation_means_embeddings_of_zero():
    hypernetwork = make("chunks that divide", embedding_std=0, chunk_embedding_std=0.0)
    assert not any(p.any() for n, p in hypernetwork.named_parameters() if "embeddings" in n)


# Saving and copying


@pytest.mark.parametrize("n_tasks", [0, 1, 3])
@pytest.mark.parametrize("kind", ["full", "chunks that do not divide", "chunks of tasks"])
def test_state_loads_into_a_fresh_one_with_fewer_tasks(kind, n_tasks, tmp_path):
    options = {"of": models.OwnParameter(), "spectral_norm": True, "init": "hyperfan"}
    saved = make(kind, **options)
    torch.save(saved.state_dict(), tmp_path / "hypernetwork.pt")
    torch.manual_seed(1)
    fresh = make(kind, n_tasks, **options)
    state = torch.load(tmp_path / "hypernetwork.pt", weights_only=True)
    nn.ModuleDict({"inside": fresh}).load_state_dict({f"inside.{n}": t for n, t in state.items()})
    assert fresh.n_tasks == 3
    assert torch.equal(fresh.eval()(range(3)), saved.eval()(range(3)))
    for hypernetwork in (saved, fresh):  # the seed of what is still to be drawn is part of it
        hypernetwork.add_task()
    assert torch.equal(fresh(3), saved(3))


def test_state_with_fewer_tasks_is_refused():
    with pytest.raises(RuntimeError, match=r'Missing key.*"embeddings.3"'):
        make(n_tasks=4).load_state_dict(make(n_tasks=3).state_dict())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda h: pickle.loads(pickle.dumps(h))])
@pytest.mark.parametrize("kind", CHUNKS)
def test_a_copy_is_equal_and_independent(kind, duplicate):
    # PyTorch does not pickle what is normalised spectrally
    hypernetwork = make(
        kind, dropout=0.1, spectral_norm=duplicate is copy.deepcopy, init="hyperfan"
    ).eval()
    before = hypernetwork(range(3))
    twin = duplicate(hypernetwork)
    assert torch.equal(twin(range(3)), before)
    for h in (hypernetwork, twin):
        h.add_task()
    assert torch.equal(twin(3), hypernetwork(3))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert torch.equal(hypernetwork(range(3)), before)
    assert not torch.isclose(twin(range(3)), before).all()


# Types and modes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", CHUNKS)
def test_weights_have_the_type_of_the_target(kind, dtype):
    hypernetwork = make(kind, of=target().to(dtype), init="hyperfan")
    assert {p.dtype for p in hypernetwork.parameters()} == {dtype}
    assert hypernetwork(range(3)).dtype == dtype


@pytest.mark.parametrize("kind", ["full", "chunks of tasks"])
def test_new_embeddings_follow_the_hypernetworks_type(kind):
    hypernetwork = make(kind, of=target().float()).double()
    hypernetwork.add_task()
    assert {p.dtype for p in hypernetwork.parameters()} == {torch.float64}
    assert hypernetwork([0, 3]).dtype == torch.float64


def test_dropout_drops_hidden_units_in_training_only():
    hypernetwork = make(hidden=(40, 4000), activation=nn.Tanh, dropout=0.25)
    z = hypernetwork.factors(0).hidden
    assert abs((z == 0).double().mean() - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    assert not torch.equal(hypernetwork(0), hypernetwork(0))
    hypernetwork.eval()
    assert torch.equal(hypernetwork(0), hypernetwork(0))
    plain = make(hidden=(40, 4000), activation=nn.Tanh)
    of_layers = [[p for n, p in h.named_parameters() if n != "seed"] for h in (hypernetwork, plain)]
    for parameter, other in zip(*of_layers, strict=True):
        parameter.data.copy_(other)
    assert_same(hypernetwork(range(3)), plain(range(3)))


def test_every_hidden_layer_has_its_dropout():
    kinds = [type(module) for module in make(hidden=(6, 5), dropout=0.25).trunk]
    assert kinds == [nn.Linear, nn.ReLU, nn.Dropout] * 2


@pytest.mark.parametrize("kind", ["full", "chunks that divide"])
def test_spectral_norm_makes_the_largest_singular_value_of_hidden_layers_one(kind):
    hypernetwork = make(kind, spectral_norm=True, hidden=(6, 7, 5))
    for _ in range(200):  # power iterations, in training mode
        hypernetwork(0)
    layers = [module for module in hypernetwork.trunk if isinstance(module, nn.Linear)]
    assert len(layers) == 3
    for layer in layers:
        assert torch.linalg.svdvals(layer.weight)[0].item() == pytest.approx(1, rel=1e-9)
    before = hypernetwork.output.weight.detach().clone()
    hypernetwork(0)
    assert torch.equal(hypernetwork.output.weight, before)
    assert len(list(hypernetwork.buffers())) == 1 + 2 * len(layers)  # nothing on the output layer
    hypernetwork.eval()
    state = copy.deepcopy(hypernetwork.state_dict())
    assert torch.equal(hypernetwork(0), hypernetwork(0))
    assert all(torch.equal(state[n], t) for n, t in hypernetwork.state_dict().items())


# Initial values


class Varied(nn.Module):
    """Layers of all kinds, and parameters that belong to none."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.hidden = nn.Linear(24, 20, bias=False)
        self.layer_norm = nn.LayerNorm(20)
        self.last = nn.Linear(20, 10)
        self.own = nn.Parameter(2 + 0.3 * torch.randn(40))
        self.scale = nn.Parameter(torch.tensor([1.5]))
        for module in (self.norm, self.layer_norm):
            nn.init.normal_(module.weight)  # which does not matter


VARIANCES = {  # of Varied; of linear and convolutional layers with mean zero
    "conv.weight": 1 / 18,
    "conv.bias": 1,
    "hidden.weight": 2 / 24,
    "last.weight": 1 / 20,
    "last.bias": 1,
}
CONSTANTS = {
    "norm.weight": 1,
    "norm.bias": 0,
    "layer_norm.weight": 1,
    "layer_norm.bias": 0,
    "scale": 1.5,
}
ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid, nn.PReLU]


@pytest.mark.parametrize(
    ("activation", "hidden"),
    [*((activation, (50, 50)) for activation in ACTIVATIONS), (nn.ReLU, (50,)), (nn.ReLU, ())],
)
def test_hyperfan_generates_weights_of_the_wanted_mean_and_variance(activation, hidden):
    torch.manual_seed(0)
    of, n = Varied(), 150
    options = {"embedding_dim": 20, "embedding_std": 0.7, "hidden": hidden, "init": "hyperfan"}
    generated = []
    for seed in range(n):
        torch.manual_seed(seed)
        hypernetwork = make(of=of, activation=activation, **options)
        generated.append(hypernetwork.layout.views(hypernetwork(range(3)).detach()))
    wanted = {name: (0, variance) for name, variance in VARIANCES.items()}
    wanted["own"] = of.own.mean().item(), of.own.var(unbiased=False).item()
    for name, (mean, variance) in wanted.items():
        values = torch.stack([views[name] for views in generated])
        assert abs(values.mean() - mean) < 5 * (variance / (n * values[0, 0].numel())) ** 0.5
        assert ((values - mean) ** 2).mean().item() == pytest.approx(variance, rel=0.15)
    for name, value in CONSTANTS.items():
        assert all((views[name] == value).all() for views in generated)
    assert {*wanted, *CONSTANTS} == {*hypernetwork.layout.shapes}


@pytest.mark.parametrize("kind", ["full", "chunks that do not divide", "chunks of tasks"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_hyperfan_keeps_the_variance_of_hidden_layers_at_one(activation, kind):
    stds = {"embedding_std": 0.5}
    if CHUNKS[kind] is not None:
        stds["chunk_embedding_std"] = 2.0
    squares = []
    for seed in range(30):
        torch.manual_seed(seed)
        hypernetwork = make(kind, hidden=(200, 200), activation=activation, init="hyperfan", **stds)
        squares.append(hypernetwork.factors(range(3)).hidden.square().mean())
    expected = activation()(torch.randn(10**6)).square().mean().item()
    assert torch.stack(squares).mean().item() == pytest.approx(expected, rel=0.2)
    assert not any(p.any() for n, p in hypernetwork.named_parameters() if n.endswith("bias"))


def test_hyperfan_gives_units_of_chunks_a_variance_that_suits_their_weights():
    hypernetwork = make("chunks that do not divide", hidden=(3000,), init="hyperfan")
    wanted = torch.cat(
        [torch.full((n,), v) for n, v in ((40, 1 / 5), (8, 1.0), (32, 1 / 8), (4, 1.0))]
    )
    second_moment = 0.5  # of ReLU
    found = 3000 * second_moment * hypernetwork.output.weight.square().mean(0)
    for unit, variance in enumerate(found.tolist()):
        of_unit = wanted[unit :: hypernetwork.chunk_size]  # one weight in each chunk
        # up to twice as much where no bias takes its half
        assert 0.9 * of_unit.min() < variance < 2.2 * of_unit.max()


def test_hyperfan_agrees_with_the_authors():
    mnets = pytest.importorskip("hypnettorch.mnets")
    main_network = mnets.MLP(n_in=5, n_out=4, hidden_layers=[8], verbose=False)
    hypernetwork = make(hidden=(3000,), init="hyperfan")
    theirs, _ = authors(hypernetwork, nn.ReLU())
    theirs.apply_hyperfan_init(method="in", mnet=main_network)
    sizes = [shape.numel() for shape in hypernetwork.layout.shapes.values()]
    ours = hypernetwork.output.weight.T.square().split(sizes)
    # Their hidden units have a second moment of 1, that of the embeddings; ours of 1/2.
    for our, their in zip(ours, theirs.layer_weight_tensors[-1].square().split(sizes), strict=True):
        assert our.mean().item() == pytest.approx(2 * their.mean().item(), rel=0.05)


def growth(kind, init, generate="*", width=100, depth=8):
    """By how much activations grow from the first to the last layer of a deep generated MLP."""
    ratios = []
    for seed in range(10):
        torch.manual_seed(seed)
        layers = [nn.Linear(width, width) for _ in range(depth)]
        of = nn.Sequential(*(module for layer in layers for module in (layer, nn.ReLU()))).float()
        chunks = {} if kind == "full" else {"chunk_size": 2000, "chunk_embedding_dim": 8}
        options = {"embedding_dim": 8, "hidden": (20,), "init": init, "generate": generate}
        weights = make(kind, 1, of, **options, **chunks)(0)[0].detach()
        views = WeightLayout(of, generate).views(weights)
        x = torch.randn(200, width, dtype=torch.float32)
        last = functional_call(of, views, (x,))
        first = functional_call(of[:2], {n: p for n, p in views.items() if n[0] == "0"}, (x,))
        ratios.append(last.norm() / first.norm())
    return torch.stack(ratios).log().mean().exp().item()


@pytest.mark.parametrize("generate", ["*", "*.weight"])
@pytest.mark.parametrize("kind", ["full", "chunks that divide"])
def test_hyperfan_keeps_the_scale_of_activations_through_a_deep_network(kind, generate):
    assert 0.5 < growth(kind, "hyperfan", generate) < 2
    assert growth(kind, "default", generate) > 20


@pytest.mark.parametrize("kind", ["full", "chunks that divide"])
@pytest.mark.parametrize("hidden", [(6,), ()], ids=str)
def test_hyperfan_needs_embeddings_that_are_not_zero(kind, hidden):
    options = {} if kind == "full" else {"chunk_embedding_std": 0.0}
    with pytest.raises(ValueError, match=r"hyperfan.*embedding_std"):
        make(kind, hidden=hidden, init="hyperfan", embedding_std=0.0, **options)


def test_hyperfan_knows_activations_with_parameters_of_single_precision():
    torch.set_default_dtype(torch.float32)
    hypernetwork = make(of=target(), activation=nn.PReLU, init="hyperfan")
    assert hypernetwork(0).dtype == torch.float32


@pytest.mark.parametrize("kind", ["full", "chunks that divide", "chunks of tasks"])
def test_hyperfan_without_hidden_layers(kind):
    weights = make(kind, hidden=(), init="hyperfan", n_tasks=2)([0, 1])
    assert weights.isfinite().all()
    assert weights.any()


def test_hyperfan_knows_the_inputs_of_transposed_convolutions():
    of = nn.Sequential(nn.ConvTranspose2d(6, 4, 4, stride=2, groups=2), nn.Conv2d(4, 5, 3))
    ours = WeightLayout(of)
    _, variance = wanted_statistics(of, ours, by_weight=True)
    of_layers = {n: v.unique().tolist() for n, v in ours.views(variance).items()}
    # Each output sums up 3 channels of its group, at 4 of 16 positions.
    assert of_layers["0.weight"] == pytest.approx([1 / (3 * 4)])
    assert of_layers["1.weight"] == pytest.approx([1 / (4 * 9)])


@pytest.mark.parametrize("kind", ["full", "chunks of tasks"])
def test_a_task_can_start_anew(kind):
    ours = make(kind, n_tasks=3)
    initial = {n: p.clone() for n, p in ours.named_parameters()}
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter += 1
    ours.reset_task(1)
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, initial[name]) == (name in ours.task_parameters(1)), name


def test_tasks_are_whole_numbers():
    ours = make(n_tasks=2)
    assert torch.equal(ours(np.int64(1)), ours(1))
    with pytest.raises(TypeError):
        ours([0.7])


def test_default_initial_values_are_those_of_pytorch():
    of = target()
    torch.manual_seed(3)
    layer = nn.Linear(3, 6)
    torch.manual_seed(3)
    assert torch.equal(make(of=of).trunk[0].weight, layer.weight)


# Sizes


def test_sizes_are_reported():
    hypernetwork = make("chunks that do not divide", n_tasks=2, dropout=0.5)
    # chunk and task embeddings (7 × 2, 2 × 3), hidden layers (5 → 6 → 5), output layer (5 → 13)
    trainable = 14 + 6 + (5 * 6 + 6) + (6 * 5 + 5) + (5 * 13 + 13)
    assert hypernetwork.sizes == (W, trainable, trainable / W)
    assert str(hypernetwork.sizes) == (
        "84 generated weights, 169 trainable weights, "
        "compression ratio 2.012 (trainable / generated)"
    )
    assert "84 generated weights" in repr(hypernetwork)
    assert "2 tasks" in repr(hypernetwork)
    hypernetwork.add_task()
    assert hypernetwork.sizes.trainable == trainable + 3


# What is refused


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"embedding_dim": 0}, ValueError, "embedding_dim must be at least 1, got 0"),
        ({"embedding_dim": 2.0}, TypeError, r"embedding_dim must be an integer.*got 2\.0"),
        ({"embedding_dim": True}, TypeError, "embedding_dim must be an integer.*got True"),
        ({"hidden": (5, 0)}, ValueError, r"hidden\[1\] must be at least 1, got 0"),
        ({"hidden": (5, "a")}, TypeError, r"hidden\[1\] must be an integer.*got 'a'"),
        ({"hidden": 10}, TypeError, "hidden.*10"),
        ({"activation": nn.ReLU()}, TypeError, r"activation.*ReLU\(\)"),
        ({"activation": torch.relu}, TypeError, "activation.*relu"),
        ({"activation": lambda: torch.relu}, TypeError, "activation.*relu"),
        ({"dropout": 1.0}, ValueError, "dropout must be a probability below 1, got 1.0"),
        ({"dropout": -0.1}, ValueError, "dropout must.*got -0.1"),
        ({"dropout": float("nan")}, ValueError, "dropout must.*got nan"),
        ({"init": "xavier"}, ValueError, "init must be one of .*'hyperfan'.*got 'xavier'"),
        ({"embedding_std": -1.0}, ValueError, "embedding_std must be at least 0.*got -1.0"),
        ({"embedding_std": float("inf")}, ValueError, "embedding_std must.*finite, got inf"),
        ({"generate": "conv*"}, ValueError, r"generate='conv\*'.*0.weight, 0.bias, 2.weight"),
        ({"generate": ["0.*", "head"]}, ValueError, "generate='head' matches no parameter"),
        ({"generate": []}, ValueError, "generate must name at least one pattern, got none"),
        ({"of": nn.ReLU()}, ValueError, "target ReLU has no parameter"),
        ({"of": target().requires_grad_(False)}, ValueError, "target Sequential has no parameter"),
        ({"of": [1, 2]}, TypeError, r"target must be.*\[1, 2\]"),
    ],
)
@pytest.mark.parametrize("kind", ["full", "chunks that divide"])
def test_bad_arguments_are_refused(kind, options, error, message):
    with pytest.raises(error, match=message):
        make(kind, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1, got 0"),
        ({"chunk_size": W + 1}, ValueError, "chunk_size must be at most .* 84, got 85"),
        (
            {"chunk_size": 10**13},
            ValueError,
            "chunk_size must be at most .* 84, got 10000000000000",
        ),
        ({"chunk_size": 2.5}, TypeError, "chunk_size must be an integer.*got 2.5"),
        ({"chunk_embedding_dim": 0}, ValueError, "chunk_embedding_dim must be at least 1, got 0"),
        ({"chunk_embedding_std": -1}, ValueError, "chunk_embedding_std must be at least 0.*-1"),
    ],
    ids=str,
)
def test_bad_arguments_of_chunks_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        make("chunks that divide", **options)


@pytest.mark.parametrize("tasks", [3, -1, [0, 3], [0, -1, 1], torch.tensor([5])], ids=str)
@pytest.mark.parametrize("kind", ["full", "chunks of tasks"])
def test_unknown_tasks_are_refused(kind, tasks):
    with pytest.raises(ValueError, match=r"no task (3|-1|5).*has 3"):
        make(kind)(tasks)


def test_no_tasks_are_refused():
    with pytest.raises(ValueError, match="tasks must name at least one task, got none"):
        make()([])
    with pytest.raises(ValueError, match="no task 0: the hypernetwork has 0"):
        make(n_tasks=0)(0)


def test_output_layer_is_a_linear_layer_with_the_transposed_weight():
    torch.manual_seed(0)
    ours = OutputLayer(3, 8)
    torch.manual_seed(0)
    linear = nn.Linear(3, 8)
    assert torch.equal(ours.weight, linear.weight.T)
    assert ours.weight.is_contiguous()
    z = torch.randn(2, 5, 3)
    torch.testing.assert_close(ours(z), linear(z))
    assert str(ours) == "OutputLayer(in_features=3, out_features=8)"


@pytest.mark.parametrize("kind", ["full", *CHUNKS])
def test_uncut_weights_begin_with_the_weights(kind):
    ours = make(kind, 3)
    for task in range(3):
        uncut = ours.uncut(task)
        assert uncut.dim() == 1
        torch.testing.assert_close(uncut[: ours.layout.n_weights], ours(task)[0])
        views, expected = ours.layout.views(uncut), ours.layout.views(ours(task)[0])
        torch.testing.assert_close(views, expected)
