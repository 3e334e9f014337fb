import pytest
import torch
from torch import nn

from avalanche_hnet import diagonal_fisher
from avalanche_hnet.core.fisher.layer_rules import layers_with_rules
from avalanche_hnet.core.fisher.one_task import OneTask
from avalanche_hnet.core.fisher.recording import record
from avalanche_hnet.core.fisher.soundness import unsound
from avalanche_hnet.core.fisher.squared_gradients import SquaredGradients
from tests.support import random_models
from tests.support.oracles import assert_close
from tests.support.random_models import SIMPLE, Case, Checkpointed, Model, single_samples

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:squared gradients of"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),
]

F, C = random_models.F_, random_models.C


def inputs(n_samples, length, idle=2):
    """The first samples take no part where a positive feature decides."""
    x = torch.randn(n_samples, length, F)
    x[:idle, :, :2] = -1
    return x


@pytest.mark.parametrize("lengths", [(1, 1), (5, 5), (6, 2)])
@pytest.mark.parametrize("block", SIMPLE)
def test_what_the_first_samples_do_not_use_is_right(block, lengths):
    model = Model(None, [block(), block()], nn.Linear(F, C), "mean").eval()
    batches = [(inputs(6, n), torch.arange(6) % C) for n in lengths]
    right = single_samples(Case(model, batches, ""), torch.float64)
    # The bias of keys has no gradient but rounding.
    assert_close(diagonal_fisher(model, batches), right, rtol=1e-7, floor=1e-30)


class EvenTokens(nn.Module):
    """A layer for as many tokens as there are samples: one of each, or two of every other."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(F, F), nn.Linear(F, C)

    def forward(self, x):
        chosen = x[..., 0] > 0
        h = torch.zeros_like(x)
        h[chosen] = self.layer(x[chosen]).tanh()
        return self.last(h.mean(1))


@pytest.mark.parametrize("first", ["one of each", "two of every other"])
def test_as_many_tokens_as_samples_are_not_taken_for_samples(first):
    model, x = EvenTokens(), torch.randn(2, 6, 3, F)
    x[..., 0] = -1
    x[0, :, 1, 0] = 1  # one of each
    x[1, ::2, 1:, 0] = 1  # two of every other
    if first != "one of each":
        x = x.flip(0)
    batches = [(part, torch.arange(6) % C) for part in x]
    right = single_samples(Case(model, batches, ""), torch.float64)
    assert_close(diagonal_fisher(model, batches), right)


def names_unsound(model, x):
    parameters = dict(model.named_parameters())
    task = OneTask(model.eval(), parameters, None)
    rules = layers_with_rules(task.layers)
    outputs, recording = record(task, x, rules)
    return unsound(task, outputs, recording, task.of_layers(rules), set())


@pytest.mark.parametrize(
    ("block", "is_sound"),
    [
        ("Plain", True),
        ("InPlace", True),
        ("Norm", True),
        ("Channels", True),
        ("Batch", True),
        ("OwnAttention", True),
        ("Sorted", False),  # a permutation does no harm, but rows are not told apart from mixed
        ("TimeFirst", False),
        ("Flat", False),
        ("Twice", False),
        ("OutsideForSome", False),
        ("SelectedTokens", False),
        ("TokenExperts", False),
    ],
)
def test_only_rows_that_are_samples_are_sound(block, is_sound):
    block = getattr(random_models, block)()
    model = Model(None, [block], nn.Linear(F, C), "mean")
    x = torch.randn(6, 5, F)
    assert not names_unsound(Model(None, [], nn.Linear(F, C), "mean"), x)
    wrong = names_unsound(model, x)
    assert bool(wrong) != is_sound
    assert all(name.startswith("blocks.0") for name in wrong)


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_a_reentrant_checkpoint_hides_is_not_sound(reentrant):
    model = Model(None, [Checkpointed(random_models.Plain(), reentrant)], nn.Linear(F, C), "mean")
    assert bool(names_unsound(model, torch.randn(6, 5, F).requires_grad_())) == reentrant


class OtherHead(nn.Module):
    """Layers that a batch without positive inputs does not use."""

    def __init__(self):
        super().__init__()
        self.first, self.other, self.last = nn.Linear(F, F), nn.Linear(F, F), nn.Linear(F, C)

    def forward(self, x):
        h = self.first(x).tanh()
        return self.last(torch.where(x[:, :1] > 0, self.other(h), h))


def test_a_layer_is_tried_when_it_first_has_gradients(monkeypatch):
    from avalanche_hnet.core.fisher import squared_gradients

    tried = []
    original = squared_gradients.disagreeing

    def disagreeing(task, rules, names, x, dtype):
        tried.append((set(names), len(x)))
        return original(task, rules, names, x, dtype)

    monkeypatch.setattr(squared_gradients, "disagreeing", disagreeing)
    model = OtherHead()
    idle, active = -torch.rand(5, F), torch.rand(5, F)
    gradients = SquaredGradients(model.eval(), dict(model.named_parameters()), idle, None)
    gradients.forward(idle)
    assert tried == []
    gradients.forward(active)
    assert tried == [({"other.weight", "other.bias"}, 2)]
    gradients.forward(active)
    assert len(tried) == 1
    assert gradients.choice.by_rule == {n for n, _ in model.named_parameters()}
