import pytest
import torch
from torch import nn
from torch.func import functional_call

from avalanche_hnet.core.hypernetworks.hyperfan import wanted_statistics
from avalanche_hnet.core.hypernetworks.weight_layout import WeightLayout
from tests.support.hypernetwork_oracles import CHUNKS, authors, make, target

pytestmark = pytest.mark.usefixtures("float64")


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
