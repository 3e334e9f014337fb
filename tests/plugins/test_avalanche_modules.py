"""Each head, dynamic module and model of Avalanche: its posterior is right, or it is refused."""

import re
from pathlib import Path

import pytest
import torch
from avalanche.models import MultiTaskModule, VAE_loss
from torch import nn

from avalanche_hnet import PriorEWCPlugin, TaskStatisticsPlugin
from tests.support.avalanche_modules import (
    REFUSED,
    RIGHT,
    padded,
    right,
    squared_gradients,
    stream_of,
)
from tests.support.strategies import naive

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "own-head.md"


@pytest.mark.filterwarnings("ignore:the prior adds")
@pytest.mark.parametrize("name", RIGHT)
def test_posterior_is_that_of_single_samples(name):
    case = RIGHT[name]
    torch.manual_seed(0)
    model, plugin = case["make"](), PriorEWCPlugin(prior_variance=2.0)
    strategy = naive(model, plugin, *case["plugins"](), lr=0.01, train_mb_size=3)
    data, used = {}, {}
    for experience in stream_of(case):
        rows_at_rest = {
            n: (p.detach().clone(), plugin.posterior.known[n].clone())
            for n, p in model.named_parameters()
            if n in plugin.posterior.known
        }
        strategy.train(experience, shuffle=False)
        for parameter, squares in squared_gradients(model, experience).items():
            data[parameter] = padded(data.get(parameter), squares) + squares
            used[parameter] = padded(used.get(parameter), squares > 0) | (squares > 0)
        for parameter, precision in plugin.posterior.precision.items():
            if parameter not in data:
                continue  # frozen before it was ever trained
            assert_close(precision - 0.5, padded(data[parameter], precision), parameter)
            known = plugin.posterior.known[parameter]
            assert not (used[parameter] & ~known).any(), parameter
            if parameter.endswith("classifier.bias"):  # no output unit is without a gradient
                assert known.tolist() == used[parameter].tolist(), parameter
        for parameter, (before, known) in rows_at_rest.items():
            now = dict(model.named_parameters())[parameter].detach()[: len(before)]
            still_unknown = ~plugin.posterior.known[parameter][: len(before)]
            assert torch.equal(now[still_unknown], before[still_unknown]), parameter
            assert not (known & still_unknown).any(), parameter
    assert any(known.any() for known in plugin.posterior.known.values())


def assert_close(actual, expected, name):
    scale = float(expected.max()) + 1e-6
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=1e-4, atol=1e-5 * scale + 1e-6, msg=name
    )


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_training(name):
    model, plugin = REFUSED[name](), PriorEWCPlugin()
    before = {n: p.clone() for n, p in model.state_dict().items() if p is not None}
    criterion = VAE_loss if name == "MlpVAE" else None
    strategy = naive(model, plugin, criterion=criterion, optimizer=torch.optim.SGD(
        [*model.parameters()] or [nn.Parameter(torch.zeros(1))], 0.1))  # fmt: skip
    words = "likelihood" if name == "MlpVAE" else rf"cannot train \w*{name.partition('(')[0]}"
    with pytest.raises(ValueError, match=words):
        strategy.train(stream_of(right(None, False))[0])
    assert not plugin.posterior.mean
    after = model.state_dict()
    assert all(torch.equal(value, after[n]) for n, value in before.items())


def test_the_page_lists_the_modules_that_are_tested():
    for heading, cases in (("right", RIGHT), ("refused", REFUSED)):
        rows = re.findall(rf"^\| `(.*?)`.*\| {heading}", PAGE.read_text(), re.MULTILINE)
        base = {name.partition("(")[0].partition(" ")[0] for name in cases}
        assert {row.partition("(")[0] for row in rows} == base


class OneHeadEach(MultiTaskModule):
    """Heads of its own, of which it does not speak."""

    def __init__(self):
        super().__init__()
        self.features = nn.Linear(6, 4)
        self.heads = nn.ModuleList(nn.Linear(4, 2) for _ in range(3))
        self.never_used = nn.Linear(4, 2)

    def forward_single_task(self, x, task_label):
        return self.heads[task_label](self.features(x).tanh())


class SpokenOf(OneHeadEach):
    def active_elements(self, experience):
        return {
            name: torch.tensor(int(name.split(".")[1]) in experience.task_labels)
            for name, _ in self.named_parameters()
            if name.startswith("heads")
        }


class OneForAll(OneHeadEach):
    def forward_single_task(self, x, task_label):
        return self.heads[0](self.features(x).tanh())


def train(model, tasks, *plugins):
    strategy = naive(model, PriorEWCPlugin(), *plugins, train_mb_size=3)
    for experience in stream_of(right(None, tasks, offset=False)):
        strategy.train(experience)


def test_heads_without_active_elements_are_warned_of_once():
    with pytest.warns(UserWarning, match="active_elements") as caught:
        train(OneHeadEach(), True)
    messages = [str(w.message) for w in caught if "active_elements" in str(w.message)]
    assert len(messages) == 1
    assert "heads.0.weight" in messages[0]
    assert "heads.1.weight" in messages[0]
    assert "never_used" not in messages[0]


@pytest.mark.parametrize(
    ("make", "tasks"), [(SpokenOf, True), (OneForAll, True), (OneHeadEach, False)]
)
def test_no_warning_of_heads_where_it_is_not_true(make, tasks):
    train(make(), tasks)  # warnings are errors


def normalised(layer):
    return nn.Sequential(nn.Linear(6, 4), layer, nn.Linear(4, 2))


def by_instance():
    layer = nn.InstanceNorm1d(2, track_running_stats=True)
    return nn.Sequential(nn.Unflatten(1, (2, 2)), layer, nn.Flatten())


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), by_instance()])
def test_shared_statistics_are_warned_of_once(layer):
    with pytest.warns(UserWarning, match="TaskStatisticsPlugin") as caught:
        train(normalised(layer), True)
    assert sum("TaskStatisticsPlugin" in str(w.message) for w in caught) == 1


@pytest.mark.parametrize(
    ("layer", "tasks"),
    [
        (lambda: nn.BatchNorm1d(4), False),
        (lambda: nn.BatchNorm1d(4, momentum=0.0), True),
        (lambda: nn.LayerNorm(4), True),
    ],
)
def test_no_warning_of_statistics_where_it_is_not_true(layer, tasks):
    train(normalised(layer()), tasks)


def test_no_warning_of_statistics_with_the_plugin():
    train(normalised(nn.BatchNorm1d(4)), True, TaskStatisticsPlugin())


def test_a_frozen_model_is_refused():
    model = nn.Linear(6, 6).requires_grad_(False)
    strategy = naive(model, PriorEWCPlugin())
    with pytest.raises(ValueError, match="none requires grad"):
        strategy.train(stream_of(right(None, False))[0])


class AllAtRest(nn.Linear):
    def active_elements(self, experience):
        return {"weight": torch.tensor(False), "bias": torch.tensor(False)}


def test_a_model_that_calls_nothing_active_is_refused():
    strategy = naive(AllAtRest(6, 6), PriorEWCPlugin())
    with pytest.raises(ValueError, match="active_elements"):
        strategy.train(stream_of(right(None, False))[0])


class Detached(nn.Linear):
    def forward(self, x):
        return super().forward(x).detach()


def test_a_loss_without_gradient_is_refused_at_the_first_batch():
    model = Detached(6, 6)
    before = model.weight.detach().clone()
    strategy = naive(model, PriorEWCPlugin())
    with pytest.raises(ValueError, match="towards the prior alone"):
        strategy.train(stream_of(right(None, False))[0])
    assert torch.equal(model.weight, before)


def replaced(model):
    model[1] = nn.Linear(8, 6)


def shrunk(model):
    smaller = nn.Linear(8, 4)
    smaller.weight.data = model[1].weight.data[:4]
    model[1] = smaller


def reordered(model):
    other = nn.Linear(8, 6)
    other.weight.data = model[1].weight.data.flip(0)
    model[1] = other


def renamed(model):
    model._modules["head"] = model._modules.pop("1")


def split(model):
    rows = model[1].weight.data
    first, second = nn.Linear(8, 4), nn.Linear(8, 2)
    first.weight.data, second.weight.data = rows[:4], rows[4:]
    model.first, model.second = first, second
    model[1] = nn.Identity()


@pytest.mark.parametrize("change", [replaced, shrunk, reordered, renamed, split])
def test_heads_that_were_changed_between_experiences_are_refused(change):
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.Tanh()), nn.Linear(8, 6))
    plugin = PriorEWCPlugin()
    strategy = naive(model, plugin)
    first, second, _ = stream_of(right(None, False))
    strategy.train(first)
    before = {n: t.clone() for n, t in plugin.posterior.mean.items()}
    change(model)
    with pytest.raises(ValueError, match=r"another parameter|any more"):
        strategy.train(second)
    assert before.keys() == plugin.posterior.mean.keys()
    assert all(torch.equal(t, plugin.posterior.mean[n]) for n, t in before.items())


def grown(model):
    larger = nn.Linear(8, 7)
    larger.weight.data[:6], larger.bias.data[:6] = model[1].weight.data, model[1].bias.data
    model[1] = larger


def initialised_again(model):
    model[1].reset_parameters()


def copied(model):
    larger = nn.Linear(8, 6)
    larger.load_state_dict(model[1].state_dict())
    model[1] = larger


@pytest.mark.parametrize("change", [grown, initialised_again, copied])
def test_changes_that_keep_the_meaning_of_rows_train_on(change):
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.Tanh()), nn.Linear(8, 6))
    strategy = naive(model, PriorEWCPlugin())
    first, second, _ = stream_of(right(None, False))
    strategy.train(first)
    change(model)
    strategy.train(second)


def test_without_a_posterior_a_head_may_be_replaced():
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.Tanh()), nn.Linear(8, 6))
    strategy = naive(model, PriorEWCPlugin(train_from_scratch=True))
    first, second, _ = stream_of(right(None, False))
    strategy.train(first)
    replaced(model)
    strategy.train(second)
