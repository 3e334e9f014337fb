import pytest
import torch
from torch import nn

from avalanche_hnet import diagonal_fisher
from tests.support import models
from tests.support.cases import CASES, N, in_batches
from tests.support.oracles import assert_close, loop_fisher

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("name", ["lenet", "transformer", "own parameter"])
def test_bounded_memory_gives_the_same(name, monkeypatch):
    make_model, make_x = CASES[name]
    model, x, y = make_model(), make_x(), torch.randint(0, 3, (N,))
    expected = diagonal_fisher(model, [(x, y)])
    monkeypatch.setattr("avalanche_hnet.core.fisher.layer_rules._BUDGET", 1)
    monkeypatch.setattr("avalanche_hnet.core.fisher.by_vmap._BUDGET", 1)
    assert_close(diagonal_fisher(model, [(x, y)]), expected)


def test_what_vmap_cannot_do_is_done_one_by_one_with_a_warning():
    model, x, y = models.Recurrent(), torch.randn(N, 4, 5), torch.randint(0, 3, (N,))
    with pytest.warns(UserWarning, match="lstm.weight_ih_l0.*one sample at a time"):
        diagonal_fisher(model, [(x, y)])


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


class MixesLargeBatches(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        hidden = self.first(x)
        return self.last((hidden - hidden.mean(0) if len(x) > 4 else hidden).tanh())


@pytest.mark.parametrize("sizes", [(8,), (3, 8), (8, 3)])
def test_a_model_that_mixes_the_samples_of_large_batches_only(sizes):
    x, y = torch.randn(sum(sizes), 6), torch.randint(0, 3, (sum(sizes),))
    batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
    with pytest.raises(ValueError, match="different outputs alone and in a batch"):
        diagonal_fisher(MixesLargeBatches(), batches)


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
