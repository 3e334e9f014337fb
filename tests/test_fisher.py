import random
import warnings

import numpy as np
import pytest
import torch
from avalanche.models import IncrementalClassifier, MultiHeadClassifier
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from avalanche_hnet import (
    BlockMultiHeadClassifier,
    Categorical,
    Gaussian,
    diagonal_fisher,
    register_fisher_rule,
)
from avalanche_hnet.core.fisher import layer_rules
from tests import models
from tests.oracles import assert_close, loop_exact_categorical_fisher, loop_fisher
from tests.streams import task_stream

pytestmark = pytest.mark.usefixtures("float64")

N = 9


def convolutions():
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2, padding_mode="circular"),
        nn.Tanh(),
        nn.Conv2d(6, 6, 3, padding="same", padding_mode="reflect", dilation=2),
        nn.Conv2d(6, 6, (3, 2), padding=(1, 0), padding_mode="replicate", groups=6, bias=False),
        nn.Flatten(),
        nn.Linear(6 * 5 * 4, 3),
    )


def normalisations():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.GroupNorm(2, 4),
        nn.Flatten(),
        nn.Linear(64, 5),
        nn.BatchNorm1d(5),
        nn.LayerNorm(5),
        nn.Linear(5, 3),
    )
    model(torch.randn(20, 2, 6, 6))  # running statistics that are not 0 and 1
    return model


def real(*shape):
    return lambda: torch.randn(N, *shape)


def tokens(length=5):
    return lambda: torch.randint(0, 12, (N, length))


CASES = {
    "mlp": (models.mlp, real(6)),
    "lenet": (models.lenet, real(1, 16, 16)),
    "convolutions": (convolutions, real(4, 9, 9)),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.Flatten(), nn.Linear(36, 3)),
        real(2, 9),
    ),
    "conv3d": (
        lambda: nn.Sequential(nn.Conv3d(2, 4, 3, stride=(1, 2, 1)), nn.Flatten(), nn.Linear(32, 3)),
        real(2, 4, 5, 4),
    ),
    "normalisations": (normalisations, real(2, 6, 6)),
    "embedding": (
        lambda: nn.Sequential(
            nn.Embedding(12, 8, padding_idx=0),
            nn.LayerNorm(8),
            nn.Linear(8, 4),
            nn.Flatten(),
            nn.Linear(20, 3),
        ),
        tokens(),
    ),
    "transformer": (
        lambda: nn.Sequential(
            nn.Linear(5, 8),
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            nn.Flatten(),
            nn.Linear(24, 3),
        ),
        real(3, 5),
    ),
    "used twice": (models.TwiceUsed, real(6)),
    "tied": (models.TiedWeights, tokens()),
    "weight outside its layer": (models.WeightUsedOutsideItsLayer, real(6)),
    "own parameter": (models.OwnParameter, real(6)),
    "samples not first": (models.SamplesNotFirst, real(N, 5)),
    "flattened": (models.Flattened, real(4, 5)),
    "recurrent": (models.Recurrent, real(4, 5)),
    "incremental": (lambda: IncrementalClassifier(6, 3, masking=False), real(6)),
}


@pytest.fixture(params=CASES)
def case(request):
    make_model, make_x = CASES[request.param]
    model, x = make_model(), make_x()
    n_classes = model.eval()(x).shape[1]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "squared gradients of lstm", UserWarning)
        yield model, x, torch.randint(0, n_classes, (N,))


def in_batches(*tensors, size=4):
    return list(zip(*(t.split(size) for t in tensors), strict=True))


def test_empirical_fisher_equals_loop(case):
    model, x, y = case
    found = diagonal_fisher(model, in_batches(x, y))
    assert_close(found, loop_fisher(model, x, y, nn.functional.cross_entropy))


def test_exact_fisher_equals_loop(case):
    model, x, y = case
    found = diagonal_fisher(model, in_batches(x, y), kind="exact")
    assert_close(found, loop_exact_categorical_fisher(model, x))


def test_sampled_fisher_equals_loop_on_the_same_draws(case):
    model, x, y = case
    found = diagonal_fisher(
        model, [(x, y)], kind="sampled", generator=torch.Generator().manual_seed(3)
    )
    drawn = Categorical().sample(model.eval()(x), torch.Generator().manual_seed(3))
    assert_close(found, loop_fisher(model, x, drawn, nn.functional.cross_entropy))


def test_gaussian_likelihood_equals_loop(case):
    model, x, _ = case
    y = torch.randn_like(model(x).detach())

    def nll(output, target):
        return ((output - target) ** 2).sum() / (2 * 0.3**2)

    found = diagonal_fisher(model, in_batches(x, y), likelihood=Gaussian(0.3))
    assert_close(found, loop_fisher(model, x, y, nll))


def test_exact_gaussian_fisher_is_the_squared_jacobian_over_the_noise():
    model, x = models.mlp(), torch.randn(N, 6)
    found = diagonal_fisher(model, [(x, torch.zeros(N, 3))], likelihood=Gaussian(0.3), kind="exact")
    expected = {
        name: sum(
            loop_fisher(model, x, x, lambda out, _, d=d: out[0, d] / 0.3)[name] for d in range(3)
        )
        for name in found
    }
    assert_close(found, expected)


def test_sampled_fisher_averages_to_the_exact_one():
    model, x = nn.Linear(3, 4), torch.randn(2000, 3)
    y = torch.zeros(2000, dtype=torch.long)
    exact = diagonal_fisher(model, [(x, y)], kind="exact")
    generator = torch.Generator().manual_seed(0)
    draws = [
        diagonal_fisher(model, [(x, y)], kind="sampled", generator=generator)["weight"]
        for _ in range(50)
    ]
    torch.testing.assert_close(torch.stack(draws).mean(0), exact["weight"], rtol=0.02, atol=1e-3)


def trained(model, stream):
    model.train()
    for experience in stream:
        for module in model.modules():
            if hasattr(module, "adaptation"):
                module.adaptation(experience)
    return model


@pytest.mark.parametrize("make_head", [MultiHeadClassifier, BlockMultiHeadClassifier])
@pytest.mark.parametrize("kind", ["empirical", "exact"])
def test_mixed_tasks_in_a_batch_equal_loop(make_head, kind):
    model = trained(models.MultiHead(make_head(8)), task_stream(3).train_stream)
    x, y = torch.randn(N, 6), torch.randint(0, 2, (N,))
    labels = torch.tensor([0, 2, 1, 1, 0, 2, 2, 2, 0])
    found = diagonal_fisher(model, in_batches(x, y, labels), kind=kind)
    if kind == "empirical":
        expected = loop_fisher(model, x, y, nn.functional.cross_entropy, labels)
    else:
        expected = loop_exact_categorical_fisher(model, x, labels)
    assert_close(found, expected)


def test_incremental_classifier_masks_unseen_classes():
    model = trained(models.Incremental(), task_stream(2, offset=True).train_stream[:1])
    x, y = torch.randn(N, 6), torch.randint(0, 2, (N,))
    assert_close(
        diagonal_fisher(model, [(x, y)], kind="exact"), loop_exact_categorical_fisher(model, x)
    )


def test_task_labels_are_ignored_by_a_model_that_does_not_take_them():
    model, x, y = models.mlp(), torch.randn(N, 6), torch.randint(0, 3, (N,))
    labels = torch.zeros(N, dtype=torch.long)
    assert_close(diagonal_fisher(model, [(x, y, labels)]), diagonal_fisher(model, [(x, y)]))


def test_labels_per_position():
    model = nn.Conv1d(2, 3, 1)
    x, y = torch.randn(N, 2, 4), torch.randint(0, 3, (N, 4))
    found = diagonal_fisher(model, [(x, y)])
    expected = loop_fisher(
        model, x, y, lambda o, t: nn.functional.cross_entropy(o, t, reduction="sum")
    )
    assert_close(found, expected)

    exact = diagonal_fisher(model, [(x, y)], kind="exact")
    by_position = [
        loop_exact_categorical_fisher(nn.Sequential(model, Position(position)), x)
        for position in range(4)
    ]
    expected = {n: sum(f[f"0.{n}"] for f in by_position) for n in exact}
    assert_close(exact, expected)


class Position(nn.Module):
    def __init__(self, index):
        super().__init__()
        self.index = index

    def forward(self, x):
        return x[:, :, self.index]


@pytest.mark.parametrize("name", ["mlp", "lenet"])
def test_equals_backpack(name):
    backpack = pytest.importorskip("backpack")
    make_model, make_x = CASES[name]
    if name == "lenet":  # BackPACK wants a flat Sequential
        nested = make_model()
        model = nn.Sequential(*nested[0], *nested[1:])
    else:
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    x, y = make_x(), torch.randint(0, 3, (N,))
    found = diagonal_fisher(model, in_batches(x, y))

    model = backpack.extend(model)
    loss = backpack.extend(nn.CrossEntropyLoss(reduction="sum"))(model(x), y)
    with backpack.backpack(backpack.extensions.SumGradSquared()):
        loss.backward()
    expected = {n: p.sum_grad_squared / N for n, p in model.named_parameters()}
    assert_close(found, expected)


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


@pytest.mark.parametrize("name", ["lenet", "transformer", "own parameter"])
def test_bounded_memory_gives_the_same(name, monkeypatch):
    make_model, make_x = CASES[name]
    model, x, y = make_model(), make_x(), torch.randint(0, 3, (N,))
    expected = diagonal_fisher(model, [(x, y)])
    monkeypatch.setattr("avalanche_hnet.core.fisher.layer_rules._BUDGET", 1)
    monkeypatch.setattr("avalanche_hnet.core.fisher.by_vmap._BUDGET", 1)
    assert_close(diagonal_fisher(model, [(x, y)]), expected)


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


def test_what_vmap_cannot_do_is_done_one_by_one_with_a_warning():
    model, x, y = models.Recurrent(), torch.randn(N, 4, 5), torch.randint(0, 3, (N,))
    with pytest.warns(UserWarning, match="lstm.weight_ih_l0.*one sample at a time"):
        diagonal_fisher(model, [(x, y)])


def test_frozen_parameters_have_no_fisher():
    model, x, y = models.mlp(), torch.randn(N, 6), torch.randint(0, 3, (N,))
    everything = diagonal_fisher(model, [(x, y)])
    model[0].requires_grad_(False)
    found = diagonal_fisher(model, [(x, y)])
    assert_close(found, {n: everything[n] for n in ("2.weight", "2.bias")})
    assert not model[0].weight.requires_grad


@pytest.mark.parametrize("max_samples", [None, 5])
@pytest.mark.parametrize("kind", ["empirical", "sampled", "exact"])
def test_leaves_no_trace(kind, max_samples):
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))
    model.train()
    model[1].eval()
    x, y = torch.randn(N, 6), torch.randint(0, 3, (N,))
    model(x).sum().backward()
    modes = [m.training for m in model.modules()]
    gradients = [p.grad.clone() for p in model.parameters()]
    buffers = {n: b.clone() for n, b in model.named_buffers()}

    def generators():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    before = generators()
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), batch_size=4, shuffle=True
    )
    with torch.no_grad():  # as in an evaluation
        diagonal_fisher(model, loader, kind=kind, max_samples=max_samples)
    assert generators() == before
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(b, buffers[n]) for n, b in model.named_buffers())
    assert all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_leaves_no_trace_after_an_error():
    model, x = models.mlp().train(), torch.randn(N, 6)
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="class indices"):
        diagonal_fisher(model, [(x, torch.full((N,), 3))])
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.requires_grad for p in model.parameters())


def test_random_subset_is_unbiased():
    model, x, y = models.mlp(), torch.randn(30, 6), torch.randint(0, 3, (30,))
    expected = diagonal_fisher(model, [(x, y)])["2.bias"]
    generator = torch.Generator().manual_seed(0)
    estimates = torch.stack(
        [
            diagonal_fisher(model, in_batches(x, y), max_samples=7, generator=generator)["2.bias"]
            for _ in range(300)
        ]
    )
    error = estimates.std(0) / 300**0.5
    assert ((estimates.mean(0) - expected).abs() < 4 * error).all()
    assert estimates.std(0).min() > 0


def test_subset_as_large_as_the_data_is_all_of_it():
    model, x, y = models.mlp(), torch.randn(N, 6), torch.randint(0, 3, (N,))
    assert_close(
        diagonal_fisher(model, in_batches(x, y), max_samples=N), diagonal_fisher(model, [(x, y)])
    )


class Cell(nn.Module):
    """Calls its layer once for each time step."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 + 4, 4)

    def forward(self, x):
        hidden = x.new_zeros(len(x), 4)
        for step in x.unbind(1):
            hidden = self.layer(torch.cat([step, hidden], 1)).tanh()
        return hidden


def test_layer_that_is_called_twice_only_later():
    model = Cell()
    x, y = (torch.randn(N, 1, 3), torch.randn(N, 5, 3)), torch.randint(0, 4, (2, N))
    found = diagonal_fisher(model, [(x[0], y[0]), (x[1], y[1])])
    parts = [loop_fisher(model, x[k], y[k], nn.functional.cross_entropy) for k in range(2)]
    assert_close(found, {n: (parts[0][n] + parts[1][n]) / 2 for n in found})


class CalledTwiceForSome(nn.Module):
    """The second call is made if a sample has a positive input, and counts for that one."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        first = self.layer(x)
        return self.layer(first) * x[:, :1].relu() + first if (x > 0).any() else first


@pytest.mark.filterwarnings("ignore:squared gradients of layer")
def test_layer_that_is_called_twice_for_some_batches_only():
    model, y = CalledTwiceForSome(), torch.randint(0, 3, (2 * N,))
    x = torch.cat([-torch.rand(N, 3), torch.rand(N, 3)])
    found = diagonal_fisher(model, [(x[:N], y[:N]), (x[N:], y[N:])])
    assert_close(found, loop_fisher(model, x, y, nn.functional.cross_entropy))


class TwiceUsedAndOwn(models.TwiceUsed):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.randn(6))

    def forward(self, x):
        return super().forward(x + self.shift)


def test_two_kinds_of_difficulty_at_once():
    model, x, y = TwiceUsedAndOwn(), torch.randn(N, 6), torch.randint(0, 3, (N,))
    assert_close(
        diagonal_fisher(model, in_batches(x, y)),
        loop_fisher(model, x, y, nn.functional.cross_entropy),
    )


class MaskedLinear(nn.Linear):
    """A subclass with another forward, wrong by little for a rule that takes it for its base."""

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


class PartlyWithoutGradient(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.last = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        with torch.no_grad():
            features = self.features(x)
        return self.last(features)


def test_part_of_the_model_without_gradient():
    model, x, y = PartlyWithoutGradient(), torch.randn(N, 6), torch.randint(0, 3, (N,))
    assert_close(
        diagonal_fisher(model, [(x, y)]), loop_fisher(model, x, y, nn.functional.cross_entropy)
    )


def test_half_precision_is_summed_in_single():
    model = nn.Linear(6, 3).bfloat16()
    x, y = torch.randn(2000, 6).bfloat16(), torch.randint(0, 3, (2000,))
    found = diagonal_fisher(model, in_batches(x, y))
    assert found["weight"].dtype == torch.float32
    assert_close(found, diagonal_fisher(model.float(), [(x.float(), y)]), rtol=0.05)


class ModeIgnoringNorm(nn.BatchNorm1d):
    def train(self, mode=True):
        return super().train(True)


class MixesSamples(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(x - x.mean(0))


class RandomInEval(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(nn.functional.dropout(x))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False), models.mlp()), "'0'"),
        (lambda: nn.Sequential(ModeIgnoringNorm(6), models.mlp()), "statistics of the batch"),
        (MixesSamples, "alone and in a batch"),
        (RandomInEval, "alone and in a batch"),
    ],
)
def test_model_without_per_sample_gradients_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        diagonal_fisher(model(), [(torch.randn(N, 6), torch.randint(0, 3, (N,)))])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "true"}, "kind must be one of .*'true'"),
        ({"max_samples": 0}, "max_samples must be an integer of at least 1, got 0"),
        ({"batches": []}, "at least one sample"),
        ({"batches": [torch.zeros(3)]}, "batches must yield"),
        ({"model": nn.ReLU()}, "no parameter that requires grad"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    good = {"model": models.mlp(), "batches": [(torch.randn(2, 6), torch.tensor([0, 1]))]}
    arguments = good | arguments
    with pytest.raises(ValueError, match=message):
        diagonal_fisher(arguments.pop("model"), arguments.pop("batches"), **arguments)


def test_float32_and_the_default_likelihoods():
    torch.set_default_dtype(torch.float32)
    model, x = models.lenet(), torch.randn(N, 1, 16, 16)
    y = torch.randint(0, 3, (N,))
    assert_close(
        diagonal_fisher(model, [(x, y)]),
        loop_fisher(model, x, y, nn.functional.cross_entropy),
        rtol=1e-4,
    )
    targets = torch.randn(N, 3)
    assert_close(
        diagonal_fisher(model, [(x, targets)]),
        diagonal_fisher(model, [(x, targets)], likelihood=Gaussian(1.0)),
    )


def test_weights_that_are_put_in_from_outside():
    """As a HyperModel does with a part of a layer's parameters."""

    class Partial(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.last = nn.Conv2d(1, 2, 3), nn.Linear(2 * 16, 3)
            self.weight = nn.Parameter(self.layer._parameters["weight"].detach())
            self.layer._parameters["weight"] = None

        def forward(self, x):
            given = {"weight": self.weight}
            hidden = torch.func.functional_call(self.layer, given, (x,))
            return self.last(hidden.tanh().flatten(1))

    torch.manual_seed(0)
    model, x, y = Partial().double(), torch.randn(5, 1, 6, 6).double(), torch.arange(5) % 3
    expected = loop_fisher(model, x, y, nn.functional.cross_entropy)
    assert_close(diagonal_fisher(model, [(x, y)]), expected)
