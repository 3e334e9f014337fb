import warnings

import pytest
import torch
from torch import nn

from avalanche_hnet import diagonal_fisher
from avalanche_hnet.core.fisher.by_loop import ByLoop
from avalanche_hnet.core.fisher.by_rule import ByRule, NotDifferentiableError
from avalanche_hnet.core.fisher.by_vmap import ByVmap
from avalanche_hnet.core.fisher.choice import Choice, choose_again, start
from avalanche_hnet.core.fisher.layer_rules import layers_with_rules
from avalanche_hnet.core.fisher.one_task import OneTask
from avalanche_hnet.core.fisher.recording import record
from avalanche_hnet.core.fisher.squared_gradients import SquaredGradients
from tests.support import models

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:squared gradients of lstm"),
]


N = 5


def task_of(model):
    return OneTask(model.eval(), dict(model.named_parameters()), None)


def choice_of(model, x):
    return start(task_of(model), layers_with_rules(dict(model.named_modules())), x).choice


def test_layers_with_rules_go_by_rule():
    model = models.mlp()
    names = frozenset(n for n, _ in model.named_parameters())
    assert choice_of(model, torch.randn(N, 6)) == Choice(names, is_plain=True)


def test_only_layers_that_multiply_matrices_are_plain():
    assert not choice_of(models.lenet(), torch.randn(N, 1, 16, 16)).is_plain
    sequences = nn.Sequential(nn.Linear(5, 4), nn.Flatten(), nn.Linear(8, 3))
    assert not choice_of(sequences, torch.randn(N, 2, 5)).is_plain


def test_a_layer_that_is_called_twice_goes_by_vmap():
    choice = choice_of(models.TwiceUsed(), torch.randn(N, 6))
    assert choice.by_vmap
    assert choice.by_loop == ()
    assert not choice.is_plain


def test_what_vmap_cannot_follow_goes_one_by_one():
    model = models.Recurrent()
    choice = choice_of(model, torch.randn(N, 4, 5))
    names = tuple(n for n, _ in model.named_parameters())
    assert choice.by_loop == tuple(n for n in names if n.startswith("lstm"))
    assert choice.by_rule == {n for n in names if not n.startswith("lstm")}


def test_a_new_choice_leaves_the_old_one_as_it_is():
    model, x = models.mlp(), torch.randn(N, 6)
    first = choice_of(model, x)
    second = choose_again(first, {"0.weight"}, task_of(model), x, x.dtype)
    assert first.by_vmap == ()
    assert second == Choice(first.by_rule - {"0.weight"}, ("0.weight",))
    third = choose_again(second, {"2.weight", "2.bias"}, task_of(model), x, x.dtype)
    assert third.by_vmap == ("0.weight", "2.weight", "2.bias")


class SometimesTwice(nn.Module):
    """Calls its first layer again for sequences of two."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        hidden = sum(self.first(step).tanh() for step in x.unbind(1))
        return self.last(hidden)


def test_the_choice_follows_the_batches():
    model = SometimesTwice()
    once, twice = torch.randn(N, 1, 3), torch.randn(N, 2, 3)
    gradients = SquaredGradients(model.eval(), dict(model.named_parameters()), once, None)
    first = gradients.choice
    assert first.by_vmap == ()
    gradients.forward(once)
    assert gradients.choice is first
    gradients.forward(twice)
    assert gradients.choice.by_vmap == ("first.weight", "first.bias")
    second = gradients.choice
    gradients.forward(twice)
    assert gradients.choice is second


def methods(model, x):
    """The three methods for all parameters, and outputs."""
    task, rules = task_of(model), layers_with_rules(dict(model.named_modules()))
    names = tuple(task.parameters)
    outputs, recording = record(task, x, rules)
    by_rule = ByRule(frozenset(names), rules, outputs, recording)
    return [by_rule, ByVmap(names, task, x), ByLoop(names, task, x)], outputs.detach()


@pytest.mark.parametrize(
    ("make", "shape"), [(models.mlp, (6,)), (models.lenet, (1, 16, 16))], ids=["mlp", "lenet"]
)
def test_methods_agree(make, shape):
    model, x = make(), torch.randn(N, *shape)
    ways, outputs = methods(model, x)
    factor = torch.randn_like(outputs)
    weights = {n: torch.rand_like(p) for n, p in model.named_parameters()}
    squares = [way.squares(factor) for way in ways]
    sums = [outputs.new_ones(N) for _ in ways]
    for way, total in zip(ways, sums, strict=True):
        way.add_weighted(total, weights, factor)
    for k in (0, 1):
        torch.testing.assert_close(squares[k], squares[2], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(sums[k], sums[2], rtol=1e-9, atol=1e-12)
    assert not torch.isclose(sums[2], torch.ones(N)).any()


def test_methods_for_no_parameters_do_nothing():
    model, x = models.mlp(), torch.randn(N, 6)
    task = task_of(model)
    outputs, recording = record(task, x, layers_with_rules(dict(model.named_modules())))
    for way in Choice(frozenset()).methods(task, {}, x, outputs, recording):
        assert way.squares(outputs.detach()) == {}
        total = torch.zeros(N)
        way.add_weighted(total, {}, outputs.detach())
        assert not total.any()


def test_a_rule_without_gradients_says_for_which_parameters():
    model, x = nn.Linear(6, 3), torch.randn(N, 6)
    task = task_of(model)
    outputs, recording = record(task, x, [""])

    def rule(layer, inputs, grads):
        squares = grads.detach().square()
        return {"weight": squares.T @ inputs.square(), "bias": squares.sum(0)}

    by_rule = ByRule(frozenset(task.parameters), {"": rule}, outputs, recording)
    weights = {n: torch.ones_like(p) for n, p in model.named_parameters()}
    with pytest.raises(NotDifferentiableError) as error:
        by_rule.add_weighted(torch.zeros(N), weights, torch.ones(N, 3))
    assert error.value.names == ["bias", "weight"]


def test_a_warning_names_the_line_that_asked_for_the_fisher():
    model, x = models.Recurrent(), torch.randn(N, 4, 5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        diagonal_fisher(model, [(x, torch.zeros(N, dtype=torch.long))])
    (warning,) = [w for w in caught if "one sample at a time" in str(w.message)]
    assert warning.filename == __file__
