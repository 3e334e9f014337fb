import random
import warnings

import numpy as np
import pytest
import torch
from avalanche.models import MultiHeadClassifier
from torch import nn

from avalanche_hnet import BlockMultiHeadClassifier, Categorical, Gaussian, diagonal_fisher
from tests.support import models
from tests.support.cases import CASES, N, in_batches
from tests.support.oracles import assert_close, loop_exact_categorical_fisher, loop_fisher
from tests.support.streams import task_stream

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(params=CASES)
def case(request):
    make_model, make_x = CASES[request.param]
    model, x = make_model(), make_x()
    n_classes = model.eval()(x).shape[1]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "squared gradients of lstm", UserWarning)
        yield model, x, torch.randint(0, n_classes, (N,))


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


def test_half_precision_is_summed_in_single():
    model = nn.Linear(6, 3).bfloat16()
    x, y = torch.randn(2000, 6).bfloat16(), torch.randint(0, 3, (2000,))
    found = diagonal_fisher(model, in_batches(x, y))
    assert found["weight"].dtype == torch.float32
    assert_close(found, diagonal_fisher(model.float(), [(x.float(), y)]), rtol=0.05)


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
