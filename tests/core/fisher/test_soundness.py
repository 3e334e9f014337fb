import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from avalanche_hnet import diagonal_fisher
from avalanche_hnet.core.fisher.layer_rules import layers_with_rules
from avalanche_hnet.core.fisher.one_task import OneTask
from avalanche_hnet.core.fisher.output_variance import output_variance
from avalanche_hnet.core.fisher.recording import record
from avalanche_hnet.core.fisher.soundness import unsound
from avalanche_hnet.core.fisher.squared_gradients import SquaredGradients
from tests.support import random_models
from tests.support.oracles import add_squares, assert_close
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


class Dispatched(nn.Module):
    """Rows for a layer by a matrix that the inputs decide on: one of each sample, two or none."""

    def __init__(self, combine):
        super().__init__()
        self.layer, self.last, self.combine = nn.Linear(F, F), nn.Linear(F, C), combine

    def forward(self, x):
        sample = torch.arange(len(x)).repeat_interleave(x[:, 0].long())
        matrix = nn.functional.one_hot(sample, len(x)).to(x.dtype)
        return self.last(self.combine(matrix, self.layer(matrix @ x)).tanh())


COMBINE = [
    lambda matrix, rows: (matrix.T[:, :, None] * rows).sum(1),
    lambda matrix, rows: torch.where(matrix.T[:, :, None] > 0, rows, 0).sum(1),
    lambda matrix, rows: torch.bmm(matrix.T[None], rows[None]).squeeze(0),
    lambda matrix, rows: torch.einsum("ns,nd->sd", matrix, rows),
    lambda matrix, rows: matrix.T @ rows,
    lambda matrix, rows: (rows.T @ matrix).T,
]


@pytest.mark.parametrize("combine", COMBINE)
def test_products_with_what_the_inputs_decide_are_seen(combine):
    x = torch.randn(8, F)
    x[:, 0] = torch.tensor([1, 1, 1, 2, 0, 1, 1, 1])
    model, batches = Dispatched(combine), [(x, torch.arange(8) % C)]
    right = single_samples(Case(model, batches, ""), torch.float64)
    assert_close(diagonal_fisher(model, batches), right)


@pytest.mark.parametrize("combine", COMBINE)
def test_variances_are_of_their_own_samples_in_another_order(combine):
    class Ordered(Dispatched):
        def forward(self, x):
            matrix = nn.functional.one_hot(x[:, 0].argsort(), len(x)).to(x.dtype)
            return self.last(combine(matrix, self.layer(matrix @ x)).tanh())

    x = torch.randn(8, F)
    x[:2, 0] = torch.tensor([-3.0, 3.0])  # in order
    model = Ordered(combine).eval()
    variances = {name: torch.rand_like(p) for name, p in model.named_parameters()}
    _, together = output_variance(model, variances, x)
    alone = torch.cat([output_variance(model, variances, row)[1] for row in x.split(1)])
    torch.testing.assert_close(together, alone)


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


@pytest.mark.parametrize("norm", [prune.identity, prune.l1_unstructured, nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_parameters_that_a_rule_does_not_know_are_seen_when_first_used(norm):
    model, (idle, active) = OtherHead(), (-torch.rand(5, F), torch.rand(5, F))
    amount = {"amount": 0.3} if norm is prune.l1_unstructured else {}
    norm(model.other, "weight", **amount)
    parameters = dict(model.named_parameters())
    y = torch.arange(5) % C
    right = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for x, target in zip(torch.cat([idle, active]), torch.cat([y, y]), strict=True):
        loss = nn.functional.cross_entropy(model(x[None]), target[None])
        add_squares(right, parameters, loss, 1 / 10)
    assert_close(diagonal_fisher(model, [(idle, y), (active, y)]), right)


class Capacity(OtherHead):
    """A layer with room for the first four samples."""

    def forward(self, x):
        h = self.first(x).tanh()
        return self.last(torch.cat([self.other(h[:4]), h[4:]]))


def test_samples_that_mix_in_large_batches_only_are_refused():
    x, y = torch.randn(6, F), torch.arange(6) % C
    with pytest.raises(ValueError, match="different outputs alone and in a batch"):
        diagonal_fisher(Capacity(), [(x, y)])
    diagonal_fisher(Capacity(), [(x[:4], y[:4])])
