"""Kronecker products in real strategies equal a plain loop over explicit matrices."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from avalanche.models import MultiHeadClassifier
from avalanche.training.plugins import ReplayPlugin
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from avalanche_hnet import BlockMultiHeadClassifier, Gaussian, InMemoryPlugin, PriorEWCPlugin
from tests.support.kronecker_loop import Batches, PlainLoop, assert_same, precision_matrix
from tests.support.models import Incremental, MultiHead, mlp
from tests.support.strategies import naive, run
from tests.support.streams import regression_stream, task_stream, tensors, two_tasks_in_one

pytestmark = pytest.mark.usefixtures("float64")

HEAD = "output.head.classifiers.{}.classifier"
SETTINGS = {"lam": 3.0, "variance": 0.5, "gamma": 0.9}


def plugin_of(settings, step, **options):
    return PriorEWCPlugin(
        settings["lam"],
        settings["variance"],
        settings["gamma"],
        penalty_step=step,
        structure="kronecker",
        **options,
    )


def compare(model, stream, plugin, loop, active, *others, **options):
    """Train both on the same batches, and hold them against each other after each experience."""
    with_labels = isinstance(model, MultiHead)
    batches, losses = Batches(with_labels), []
    strategy = naive(model, *others, plugin, batches, **options)
    for number, experience in enumerate(stream):
        strategy.train(experience, shuffle=bool(others))
        x, y, *rest = tensors(experience)
        loop.start(batches.start)
        loop.train(batches.batches, (x, y, *rest) if with_labels else (x, y), active(number))
        losses += batches.losses
        assert_same(plugin.posterior, dict(model.named_parameters()), loop, losses)
    return strategy


def all_rows(n):
    return torch.ones(n, dtype=torch.bool)


def model_with_heads(stream, head=None):
    """All heads from the start."""
    model = MultiHead(head)
    for experience in stream:
        model.output["head"].adaptation(experience)
    return model


STEPS = pytest.mark.parametrize("step", ["implicit", "gradient"])


@pytest.mark.parametrize(("step", "rank"), [("implicit", 1), ("gradient", 1), ("gradient", None)])
@pytest.mark.parametrize("kind", ["empirical", "exact"])
def test_three_heads(step, rank, kind):
    stream = task_stream(3).train_stream
    model = model_with_heads(stream)
    plugin = plugin_of(SETTINGS, step, rank=rank, fisher=kind)
    layers = ["features.1", *(HEAD.format(t) for t in range(3))]
    loop = PlainLoop(
        model_with_heads(stream), layers, implicit=step == "implicit", rank=rank, kind=kind,
        **SETTINGS,
    )  # fmt: skip
    compare(
        model, stream, plugin, loop,
        lambda task: {"features.1": all_rows(8), HEAD.format(task): all_rows(2)},
    )  # fmt: skip


class GrowingLoop(PlainLoop):
    """Runs a model with as many classes as there are by now."""

    def start(self, parameters):
        super().start(parameters)
        self.model = _Growing(len(parameters["head.classifier.bias"]))


class _Growing(nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Tanh())
        self.head = nn.ModuleDict({"classifier": nn.Linear(8, n_classes)})

    def forward(self, x):
        return self.head["classifier"](self.features(x))


GROWING = ["features.1", "head.classifier"]


@STEPS
@pytest.mark.parametrize("prior_mean", ["zero", "initial"])
def test_a_softmax_that_grows(step, prior_mean):
    stream = task_stream(3, offset=True, task_labels=[0, 0, 0]).train_stream
    loop = GrowingLoop(
        _Growing(2), GROWING, implicit=step == "implicit", at_initial=prior_mean == "initial",
        **SETTINGS,
    )  # fmt: skip
    compare(
        Incremental(), stream, plugin_of(SETTINGS, step, prior_mean=prior_mean), loop,
        lambda number: {"features.1": all_rows(8), "head.classifier": all_rows(2 * number + 2)},
    )  # fmt: skip


@STEPS
def test_replayed_samples_are_not_counted_again(step):
    stream = task_stream(3, offset=True, task_labels=[0, 0, 0]).train_stream
    loop = GrowingLoop(_Growing(2), GROWING, implicit=step == "implicit", **SETTINGS)
    compare(
        Incremental(), stream, plugin_of(SETTINGS, step), loop,
        lambda number: {"features.1": all_rows(8), "head.classifier": all_rows(2 * number + 2)},
        ReplayPlugin(10),
    )  # fmt: skip


def test_heads_that_replay_moves_feel_their_products():
    stream = task_stream(3).train_stream
    model = model_with_heads(stream)
    layers = ["features.1", *(HEAD.format(t) for t in range(3))]
    loop = PlainLoop(model_with_heads(stream), layers, **SETTINGS)
    compare(
        model, stream, plugin_of(SETTINGS, "gradient"), loop,
        lambda task: {"features.1": all_rows(8), HEAD.format(task): all_rows(2)},
        ReplayPlugin(20),
    )  # fmt: skip


@STEPS
def test_one_layer_of_blocks(step):
    """G of an experience has rows of zeros outside its block."""
    stream = task_stream(3).train_stream
    model = model_with_heads(stream, BlockMultiHeadClassifier(8))
    copy = model_with_heads(stream, BlockMultiHeadClassifier(8))
    block = "output.head.classifier"
    loop = PlainLoop(copy, ["features.1", block], implicit=step == "implicit", **SETTINGS)
    compare(
        model, stream, plugin_of(SETTINGS, step), loop,
        lambda task: {"features.1": all_rows(8), block: torch.arange(6) // 2 == task},
    )  # fmt: skip


def test_blocks_with_all_products_equal_separate_heads():
    stream = task_stream(3).train_stream
    separate = model_with_heads(stream)
    blocks = model_with_heads(stream, BlockMultiHeadClassifier(8))
    heads = [h.classifier for h in separate.output["head"].classifiers.values()]
    blocks.features.load_state_dict(separate.features.state_dict())
    with torch.no_grad():
        layer = blocks.output["head"].classifier
        layer.weight.copy_(torch.cat([h.weight for h in heads]))
        layer.bias.copy_(torch.cat([h.bias for h in heads]))
    found = []
    for model in (separate, blocks):
        plugin = plugin_of(SETTINGS, "gradient", rank=None)
        run(plugin, model, stream)
        found.append((plugin.posterior, model))
    of_heads = [precision_matrix(found[0][0], HEAD.format(t)) for t in range(3)]
    of_blocks = precision_matrix(found[1][0], "output.head.classifier")
    torch.testing.assert_close(of_blocks, torch.block_diag(*of_heads), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        layer.weight, torch.cat([h.weight for h in heads]), rtol=1e-9, atol=1e-11
    )


@STEPS
@pytest.mark.parametrize("head", [MultiHeadClassifier, BlockMultiHeadClassifier])
def test_several_tasks_in_one_experience(head, step):
    """A head's inputs are those of its task's samples; its G is averaged over all."""
    stream = task_stream(3).train_stream
    options = {"masking": False} if head is MultiHeadClassifier else {}
    model, copy = (model_with_heads(stream, head(8, **options)) for _ in range(2))
    experiences = [two_tasks_in_one(stream[0], stream[2]), stream[1], stream[0]]
    tasks = [[0, 2], [1], [0]]
    block = "output.head.classifier"
    is_block = head is BlockMultiHeadClassifier
    layers = ["features.1", *([block] if is_block else (HEAD.format(t) for t in range(3)))]

    def active(number):
        if is_block:
            rows = torch.isin(torch.arange(6) // 2, torch.tensor(tasks[number]))
            return {"features.1": all_rows(8), block: rows}
        return {"features.1": all_rows(8)} | {HEAD.format(t): all_rows(2) for t in tasks[number]}

    loop = PlainLoop(copy, layers, implicit=step == "implicit", **SETTINGS)
    compare(model, experiences, plugin_of(SETTINGS, step), loop, active)


@STEPS
@pytest.mark.parametrize("criterion", [nn.MSELoss(), nn.BCEWithLogitsLoss()])
def test_regression_and_labels_that_do_not_exclude_each_other(criterion, step):
    generator = torch.Generator().manual_seed(2)
    data = []
    for _ in range(3):
        x = torch.randn(12, 6, generator=generator)
        y = torch.randn(12, 3, generator=generator)
        data.append((x, y if isinstance(criterion, nn.MSELoss) else (y > 0).double()))
    is_regression = isinstance(criterion, nn.MSELoss)

    def nll(outputs, y):
        if is_regression:
            return (outputs - y).square().sum() / 2
        return F.binary_cross_entropy_with_logits(outputs, y, reduction="sum")

    model = mlp()
    loop = PlainLoop(
        mlp(), ["0", "2"], nll=nll, criterion=criterion, implicit=step == "implicit",
        scale=2 / 3 if is_regression else 1 / 3, **SETTINGS,
    )  # fmt: skip
    compare(
        model, regression_stream(data).train_stream, plugin_of(SETTINGS, step), loop,
        lambda number: {"0": all_rows(8), "2": all_rows(3)}, criterion=criterion,
    )  # fmt: skip


@STEPS
def test_every_experience_from_scratch(step):
    """Each with the prior alone, whatever was learned before."""
    stream = task_stream(3, task_labels=[0, 0, 0]).train_stream
    model, plugin = mlp(n_out=2), plugin_of(SETTINGS, step, train_from_scratch=True)
    strategy = naive(model, plugin, batches := Batches(with_labels=False))
    for experience in stream:
        strategy.train(experience, shuffle=False)
        loop = PlainLoop(mlp(n_out=2), ["0", "2"], implicit=step == "implicit", **SETTINGS)
        loop.start(batches.start)
        everything = {"0": all_rows(8), "2": all_rows(2)}
        loop.train(batches.batches, tensors(experience)[:2], everything)
        parameters = dict(model.named_parameters())
        assert_same(plugin.posterior, parameters, loop, batches.losses)


@STEPS
def test_a_layer_that_is_frozen_keeps_its_product(step):
    """It is discounted, as everything is, and protects the layer again when that thaws."""
    stream = task_stream(3, task_labels=[0, 0, 0]).train_stream
    model, copy, plugin = mlp(n_out=2), mlp(n_out=2), plugin_of(SETTINGS, step)
    loop = FreezingLoop(copy, ["0", "2"], implicit=step == "implicit", **SETTINGS)
    strategy, losses = naive(model, plugin, batches := Batches(with_labels=False)), []
    for number, experience in enumerate(stream):
        model[0].requires_grad_(number != 1)
        loop.is_frozen = number == 1
        strategy.train(experience, shuffle=False)
        loop.start(batches.start)
        active = {"0": all_rows(8), "2": all_rows(2)}
        if number == 1:
            del active["0"]
        loop.train(batches.batches, tensors(experience)[:2], active)
        losses += batches.losses
        assert_same(plugin.posterior, dict(model.named_parameters()), loop, losses)


class FreezingLoop(PlainLoop):
    is_frozen = False

    def train(self, *args):
        before = {n: self.phi[n].clone() for n in ("0.weight", "0.bias")}
        super().train(*args)
        if self.is_frozen:
            assert all(torch.equal(self.phi[n], w) for n, w in before.items())

    def factors(self, samples):
        factors = super().factors(samples)
        return {n: f for n, f in factors.items() if not (self.is_frozen and n == "0")}

    def run(self, phi, *inputs):
        if self.is_frozen:
            phi = {n: p.detach() if n.startswith("0") else p for n, p in phi.items()}
        return super().run(phi, *inputs)


def test_a_subset_for_the_fisher_is_repeatable_and_disturbs_nothing():
    stream = task_stream(2, n_samples=40, task_labels=[0, 0]).train_stream
    found = []
    for n_fisher, seed in ((None, 0), (3, 0), (3, 0), (3, 1)):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(seed)
        options = {"n_fisher": n_fisher, "generator": generator, "fisher": "sampled"}
        plugin = PriorEWCPlugin(0.0, structure="kronecker", **options)
        model = mlp(n_out=2)
        run(plugin, model, stream, shuffle=True)
        found.append((precision_matrix(plugin.posterior, "0"), model[0].weight.detach()))
    (whole, weight), (first, other_weight), (again, _), (other, _) = found
    assert torch.equal(weight, other_weight)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, whole)


def test_of_few_samples_a_products_rank_is_at_most_theirs():
    stream = task_stream(1, n_samples=40, task_labels=[0]).train_stream
    plugin = PriorEWCPlugin(structure="kronecker", n_fisher=2)
    run(plugin, mlp(n_out=2), stream)
    ((inputs, outputs),) = plugin.posterior._parts.layers["0"].products
    assert torch.linalg.matrix_rank(inputs[0], rtol=1e-9) == 2
    assert torch.linalg.matrix_rank(outputs[0], rtol=1e-9) <= 2


@settings(max_examples=12, deadline=None)
@given(
    lam=st.floats(0, 100),
    variance=st.floats(0.05, 20),
    gamma=st.floats(0, 1),
    is_implicit=st.booleans(),
    at_initial=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_settings(lam, variance, gamma, is_implicit, at_initial, seed):
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(seed)
    stream = task_stream(3, n_samples=10, task_labels=[0, 0, 0]).train_stream
    given = {"lam": lam, "variance": variance, "gamma": gamma}
    step, mean = ("gradient", "implicit")[is_implicit], ("zero", "initial")[at_initial]
    loop = PlainLoop(
        mlp(n_out=2), ["0", "2"], implicit=is_implicit, at_initial=at_initial, lr=1e-3, **given
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the prior adds")
        compare(
            mlp(n_out=2), stream, plugin_of(given, step, prior_mean=mean), loop,
            lambda number: {"0": all_rows(8), "2": all_rows(2)}, lr=1e-3, train_epochs=1,
        )  # fmt: skip


@pytest.mark.parametrize("bias", [False, True])
def test_linear_gaussian_stream_gives_the_exact_bayesian_posterior(bias):
    """Conjugate Bayesian linear regression, with all covariances, in three experiences."""
    noise, variance, n, d = 0.3, 2.0, 16, 3
    truth, data = torch.randn(d), []
    for scale in (1.0, 0.5, 1.5):
        x = scale * torch.randn(n, d) @ (torch.eye(d) + 0.3)
        data.append((x, (x @ truth + 0.7 + noise * torch.randn(n))[:, None]))
    model = nn.Linear(d, 1, bias=bias)
    plugin = PriorEWCPlugin(
        prior_variance=variance, fisher="exact", likelihood=Gaussian(noise), structure="kronecker"
    )
    steepest = max(torch.linalg.matrix_norm(with_ones(x, bias), 2).item() ** 2 for x, _ in data)
    strategy = naive(
        model, plugin, criterion=nn.MSELoss(), lr=n / steepest / 2, train_mb_size=n,
        train_epochs=600,
    )  # fmt: skip
    precision = torch.eye(d + bias) / variance
    shift = torch.zeros(d + bias)
    for experience, (x, y) in zip(regression_stream(data).train_stream, data, strict=True):
        strategy.train(experience)
        x = with_ones(x, bias)
        precision += x.T @ x / noise**2
        shift += x.T @ y[:, 0] / noise**2
        found = precision_matrix(plugin.posterior, "") + torch.eye(d + bias) / variance
        torch.testing.assert_close(found, precision, rtol=1e-9, atol=1e-9)
        mean = torch.cat([p.flatten() for p in plugin.posterior.mean.values()])
        expected = torch.linalg.solve(precision, shift)
        torch.testing.assert_close(mean, expected, rtol=1e-6, atol=1e-8)


def with_ones(x, bias):
    return torch.cat([x, torch.ones(len(x), 1)], 1) if bias else x


@pytest.mark.in_memory
def test_data_in_memory_give_the_same_posterior():
    stream, found = task_stream(3).train_stream, []
    for others in ([], [InMemoryPlugin()]):
        torch.manual_seed(0)
        model, plugin = MultiHead(), plugin_of(SETTINGS, "auto")
        run(plugin, model, stream, *others, shuffle=True)
        found.append((plugin.posterior, model))
    (posterior, model), (other, other_model) = found
    for p, q in zip(model.parameters(), other_model.parameters(), strict=True):
        assert torch.equal(p, q)
    for name in posterior._parts.layers:
        assert torch.equal(precision_matrix(posterior, name), precision_matrix(other, name))


@pytest.mark.parametrize("n_fisher", [None, 7])
def test_batches_of_the_fisher_are_made_again_and_not_kept(n_fisher, monkeypatch):
    """Layers that lose their trust late ask for them twice."""
    plugin = PriorEWCPlugin(structure="kronecker", n_fisher=n_fisher)
    compute, passes = plugin.posterior.fisher, []

    def fisher(model, batches, **options):
        assert iter(batches) is not batches
        passes.extend(torch.cat([x for x, *_ in batches]) for _ in range(2))
        return compute(model, batches, **options)

    monkeypatch.setattr(plugin.posterior, "fisher", fisher)
    run(plugin, mlp(n_out=2), task_stream(1).train_stream)
    first, second = passes
    assert len(first) == (n_fisher or 20)
    assert torch.equal(first, second)
