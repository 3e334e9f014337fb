import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from avalanche_hnet.core.hypernetworks.output_layer import OutputLayer
from tests.support import models
from tests.support.hypernetwork_oracles import (
    CHUNKS,
    W,
    assert_same,
    authors,
    loop_weights,
    make,
    target,
)

pytestmark = pytest.mark.usefixtures("float64")


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


class Scaled(nn.Module):
    """An activation with a weight and a buffer, its layer under two names."""

    def __init__(self):
        super().__init__()
        self.slope = self.same_slope = nn.PReLU()
        self.register_buffer("scale", torch.tensor(1.5))

    def forward(self, x):
        return self.same_slope(self.slope(x)) * self.scale


@pytest.mark.parametrize("is_shared", [False, True])
def test_given_parameters_of_activations(is_shared):
    shared = Scaled()
    activation = (lambda: shared) if is_shared else Scaled
    hypernetwork = make("full", hidden=(5, 4), activation=activation)
    before = copy.deepcopy(hypernetwork.state_dict())
    tensors = [*hypernetwork.named_parameters(), *hypernetwork.named_buffers()]
    given = {n: t.detach() + 0.1 for n, t in tensors}
    found = hypernetwork.product(hypernetwork.factors([2, 0], given))
    assert_same(hypernetwork.state_dict(), before)
    other = copy.deepcopy(hypernetwork)
    with torch.no_grad():
        for name, tensor in [*other.named_parameters(), *other.named_buffers()]:
            tensor.copy_(given[name])
    assert_same(found, other([2, 0]))


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
    assert len(list(hypernetwork.buffers())) == 1 + 2 * len(layers)  # none on the output layer
    hypernetwork.eval()
    state = copy.deepcopy(hypernetwork.state_dict())
    assert torch.equal(hypernetwork(0), hypernetwork(0))
    assert all(torch.equal(state[n], t) for n, t in hypernetwork.state_dict().items())


# Starting anew


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
