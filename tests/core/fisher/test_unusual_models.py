"""Models and surroundings that are rare, and must be right all the same."""

import pytest
import torch
from avalanche.models import MTSimpleCNN
from torch import nn

from avalanche_hnet import Gaussian, GaussianPosterior, diagonal_fisher, predict
from tests.support.models import mlp
from tests.support.oracles import assert_close, loop_fisher
from tests.support.posteriors import CLOSE, moments, posterior_of
from tests.support.random_models import Case, Checkpointed, Model, Plain, TimeFirst, single_samples
from tests.support.streams import task_stream

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:squared gradients of"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),
]

N = 7
Y = torch.arange(N) % 3


class Squeezed(nn.Module):
    """A regressor whose outputs are (B,), and () for a batch of one."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, x):
        return self.layers(x).squeeze()


class SqueezedInside(nn.Module):
    """Hidden values lose the dimension of a batch of one, and then another one is the first."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        hidden = self.layer(x)[:, :, None].tanh().squeeze()
        return self.last(hidden - hidden.mean(-1, keepdim=True))


class SqueezedAndFails(SqueezedInside):
    """What is done then has no meaning without the dimension."""

    def forward(self, x):
        hidden = self.layer(x)[:, :, None].squeeze()
        return self.last(hidden / hidden.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("size", [1, 2, 3, N])
@pytest.mark.parametrize("make", [Squeezed, SqueezedInside, SqueezedAndFails])
def test_models_that_squeeze(make, size):
    model, x = make(), torch.randn(N, 6)
    y = torch.randn(N) if make is Squeezed else Y
    batches = list(zip(x.split(size), y.split(size), strict=True))
    right = single_samples(Case(model, batches, ""), torch.float64)
    assert_close(diagonal_fisher(model, batches), right)


def test_a_model_that_squeezes_predicts():
    model, x = Squeezed(), torch.randn(N, 6)
    posterior = posterior_of(model)
    prediction = predict(model, posterior, x, likelihood=Gaussian())
    _, covariance, _ = moments(model, posterior, x)
    torch.testing.assert_close(prediction.epistemic_variance, covariance.diagonal(), **CLOSE)


@pytest.mark.parametrize("size", [1, 4])
def test_avalanches_convolutional_network_with_heads(size):
    model = MTSimpleCNN().to(torch.float64)
    for experience in task_stream(2).train_stream:
        model.classifier.adaptation(experience)
    model = model.to(torch.float64).eval()
    x, y = torch.randn(5, 3, 32, 32), torch.arange(5) % 2
    labels = torch.ones(5, dtype=torch.long)
    parts = [t.split(size) for t in (x, y, labels)]
    fisher = diagonal_fisher(model, list(zip(*parts, strict=True)))

    class OneTask(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x, torch.ones(len(x), dtype=torch.long))

    right = single_samples(Case(OneTask(), [(x, y)], ""), torch.float64)
    assert_close({f"model.{n}": f for n, f in fisher.items()}, right)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("block", [Plain, TimeFirst])
@pytest.mark.parametrize("position", [0, 1])
def test_checkpointed_blocks(block, reentrant, position):
    blocks = [Plain(), Plain()]
    blocks[position] = Checkpointed(block(), reentrant)
    model, x = Model(None, blocks, nn.Linear(4, 3), "mean").eval(), torch.randn(N, 5, 4)
    before = [torch.randn_like(p) for p in model.parameters()]
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        parameter.grad = gradient.clone()
    batches = [(x[:4], Y[:4]), (x[4:], Y[4:])]
    right = single_samples(Case(model, batches, ""), torch.float64)
    assert_close(diagonal_fisher(model, batches), right)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))


class OddParameters(nn.Module):
    """Parameters of dimension 0, without elements, and without use."""

    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(6, 3), nn.Parameter(torch.tensor(0.5))
        self.nothing, self.none = nn.Parameter(torch.zeros(0)), nn.Parameter(torch.zeros(3, 0))
        self.unused = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return self.layer(x) * self.scale.exp() + self.nothing.sum() + self.none.sum(1)


def test_parameters_of_dimension_0_and_without_elements():
    model, x = OddParameters(), torch.randn(N, 6)
    right = loop_fisher(model, x, Y, nn.functional.cross_entropy)
    fisher = diagonal_fisher(model, [(x, Y)])
    assert {n: f.shape for n, f in fisher.items()} == {n: f.shape for n, f in right.items()}
    for name in right:
        torch.testing.assert_close(fisher[name], right[name], **CLOSE)
    posterior = posterior_of(model)
    prediction = predict(model, posterior, x, likelihood=Gaussian())
    _, covariance, _ = moments(model, posterior, x)
    variance = prediction.epistemic_variance.flatten()
    torch.testing.assert_close(variance, covariance.diagonal(), **CLOSE)


class Empty(nn.Module):
    def __init__(self):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(0, 3))

    def forward(self, x):
        return x + self.nothing.sum(0)


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(x).detach()


class InInferenceMode(Detached):
    @torch.inference_mode()
    def forward(self, x):
        return self.layer(x)


class WithoutUse(Detached):
    def forward(self, x):
        return x.tanh()


@pytest.mark.parametrize("kind", ["empirical", "sampled", "exact"])
@pytest.mark.parametrize("make", [Empty, Detached, InInferenceMode, WithoutUse])
def test_models_that_are_not_differentiated_have_a_fisher_of_zero(make, kind):
    model, x = make(), torch.randn(N, 3)
    fisher = diagonal_fisher(model, [(x, Y)], kind=kind)
    assert {n: f.shape for n, f in fisher.items()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    assert not any(f.any() for f in fisher.values())
    prediction = predict(model, posterior_of(model, displaced=0), x, likelihood=Gaussian())
    assert not prediction.epistemic_variance.any()
    torch.testing.assert_close(prediction.mean, model(x).detach().clone())


@pytest.mark.parametrize("kind", ["empirical", "sampled", "exact"])
@pytest.mark.parametrize("max_samples", [None, 3])
def test_fisher_in_inference_mode(kind, max_samples):
    model = mlp()
    data = torch.randn(N, 6)
    options = {"kind": kind, "max_samples": max_samples}
    right = diagonal_fisher(model, [(data, Y)], **options)
    assert all(f.any() for f in right.values())
    with torch.inference_mode():
        inputs, targets = data * 1, Y * 1  # tensors of inference mode
        outside = diagonal_fisher(model, [(data, Y)], **options)
        inside = diagonal_fisher(model, [(inputs, targets)], **options)
        assert torch.is_inference_mode_enabled()
    assert_close(outside, right)
    assert_close(inside, right)


@pytest.mark.parametrize("method", ["linearized", "sample", "map"])
def test_predictions_in_inference_mode(method):
    model, x = mlp(), torch.randn(N, 6)
    posterior = posterior_of(model)
    right = predict(model, posterior, x, method)
    regression = predict(model, posterior, x, method, likelihood=Gaussian())
    before = [p.data_ptr() for p in model.parameters()]
    with torch.inference_mode():
        of_inference = posterior_of(model)
        for p in (posterior, of_inference):
            torch.testing.assert_close(predict(model, p, x, method), right, **CLOSE)
            torch.testing.assert_close(predict(model, p, x * 1, method), right, **CLOSE)
            again = predict(model, p, x, method, likelihood=Gaussian())
            torch.testing.assert_close(tuple(again), tuple(regression), **CLOSE)
        assert torch.is_inference_mode_enabled()
    assert [p.data_ptr() for p in model.parameters()] == before
    assert isinstance(posterior, GaussianPosterior)


@pytest.mark.parametrize("scale", [1e-3, 1e-9, 1e-30])
def test_wrong_rules_do_not_hide_behind_larger_gradients(scale):
    class Scaled(nn.Module):
        """The branch has tiny gradients, and time in dimension 0."""

        def __init__(self):
            super().__init__()
            self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.last(x.mean(1) + scale * self.layer(x.transpose(0, 1)).tanh().mean(0))

    model, x = Scaled(), torch.randn(N, 5, 4)
    right = loop_fisher(model, x, Y, nn.functional.cross_entropy)
    assert_close(diagonal_fisher(model, [(x, Y)]), right)


@pytest.mark.parametrize("max_samples", [N, 2 * N, 3 * N + 1])
def test_all_of_batches_of_different_lengths(max_samples):
    model = nn.Sequential(nn.AdaptiveAvgPool1d(3), nn.Linear(3, 3), nn.Flatten())
    x = [torch.randn(N, 1, length) for length in (5, 7, 5)]
    batches = [(part, Y) for part in x]
    everything = diagonal_fisher(model, batches)
    values = diagonal_fisher(model, batches, max_samples=max_samples)
    if max_samples >= 3 * N:
        assert_close(values, everything)
    generator = torch.Generator().manual_seed(1)
    keys = torch.rand(3 * N, generator=generator, dtype=torch.float64)
    chosen = keys.argsort()[:max_samples]
    values = diagonal_fisher(
        model, batches, max_samples=max_samples, generator=torch.Generator().manual_seed(1)
    )
    singles = [(x[n // N][n % N][None], Y[n % N][None]) for n in chosen.tolist()]
    assert_close(values, diagonal_fisher(model, singles))
