import copy
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from avalanche_hnet import FixedTarget
from avalanche_hnet.core.regularizers import Experience, output
from avalanche_hnet.core.regularizers.deviation import SHARED, Deviation, UnitClasses
from tests.support.hypernetwork_oracles import make
from tests.support.regularizers import (
    BETA,
    CLASSES,
    FORMS,
    Samples,
    assert_penalty,
    begin,
    hypernetwork,
    owners,
    plain_penalty,
)

pytestmark = pytest.mark.usefixtures("float64")


ACTIVATIONS = {nn.Tanh: torch.tanh, nn.Sigmoid: torch.sigmoid, nn.SiLU: nn.functional.silu}


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_both_forms_equal_the_formula_whatever_the_sizes(data):
    torch.set_default_dtype(torch.float64)
    cls = data.draw(st.sampled_from(CLASSES))
    n_tasks = data.draw(st.integers(1, 5))
    activation = data.draw(st.sampled_from([*ACTIVATIONS]))
    options = {
        "hidden": data.draw(st.lists(st.integers(1, 5), max_size=3)),
        "embedding_dim": data.draw(st.integers(1, 4)),
        "activation": activation,
    }
    of = nn.Linear(3, data.draw(st.integers(1, 5)))
    n_weights = 4 * of.out_features
    if data.draw(st.booleans()):
        ours = make("full", n_tasks, of, **options)
    else:
        ours = make(
            "chunks that divide",
            n_tasks,
            of,
            chunk_size=data.draw(st.integers(1, n_weights)),
            task_specific_chunk_embeddings=data.draw(st.booleans()),
            **options,
        )
    masks = torch.randint(-2, n_tasks, (n_weights,))
    protected = data.draw(st.permutations(range(n_tasks)))[: data.draw(st.integers(1, n_tasks))]
    chosen = {"mask_heads": data.draw(st.booleans())}
    if cls is FixedTarget:
        chosen["train_previous_embeddings"] = data.draw(st.booleans())
    if data.draw(st.booleans()):
        chosen["tasks_per_step"] = data.draw(st.integers(1, n_tasks))

    found = []
    for form in FORMS:
        torch.manual_seed(1)
        regularizer = cls(BETA, form=form, **chosen)
        parameters, change = begin(regularizer, ours, protected, masks)
        found.append(regularizer.penalty(parameters, change, through_change=True))
    k = min(chosen.get("tasks_per_step", n_tasks), len(protected))
    expected = [
        plain_penalty(
            cls,
            ours,
            tasks,
            parameters,
            change,
            masks if chosen["mask_heads"] else None,
            activation=ACTIVATIONS[activation],
        )
        for tasks in combinations(protected, k)
    ]
    nearest = min(expected, key=lambda e: abs(BETA * e.value - found[0].value))
    for penalty in found:
        assert_penalty(penalty, nearest)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_sum_of_squares_counts_what_the_owners_say(data):
    torch.set_default_dtype(torch.float64)
    n_chunks, chunk_size = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9))
    n_weights = n_chunks * chunk_size - data.draw(st.integers(0, chunk_size - 1))
    of_weights = st.lists(st.integers(-2, 3), min_size=n_weights, max_size=n_weights)
    masks = torch.tensor(data.draw(of_weights))
    tasks = torch.tensor(data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4)))
    matrix = torch.randn(chunk_size, 5, requires_grad=True)
    hidden, change = torch.randn(2, len(tasks), n_chunks, 2, requires_grad=True).unbind()
    vectors = torch.cat([hidden, torch.ones_like(hidden[..., :1]), change], dim=-1)
    deviation = Deviation(matrix[:, 3:].T, matrix[:, :2].T, matrix[:, 2], hidden, change)

    value = 0.0
    weights = deviation.weights(n_weights)
    for task, of_task in zip(tasks.tolist(), weights, strict=True):
        for i, owner in enumerate(masks.tolist()):
            row, chunk = (
                matrix[i % chunk_size],
                vectors[tasks.tolist().index(task), i // chunk_size],
            )
            if tasks.tolist().count(task) == 1:
                torch.testing.assert_close(of_task[i], row @ chunk)
            if owner in (SHARED, task):
                value = value + of_task[i] ** 2
    expected = torch.as_tensor(value)
    rows = UnitClasses(masks, chunk_size)
    found = deviation.sum_of_squares(rows, tasks)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    if expected.requires_grad:
        of_found = torch.autograd.grad(3 * found, [matrix, hidden, change])
        of_expected = torch.autograd.grad(3 * expected, [matrix, hidden, change], retain_graph=True)
        torch.testing.assert_close(of_found, of_expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(rows.restored(rows.in_order(matrix.T)), matrix.T)


def test_masks_are_not_used_unless_asked_for():
    ours, regularizer = hypernetwork(), FixedTarget(BETA)
    parameters, change = begin(regularizer, ours, owners=owners())
    expected = plain_penalty(FixedTarget, ours, range(3), parameters, change)
    assert_penalty(regularizer.penalty(parameters, change), expected)


class Largest(TorchDispatchMode):
    """Sees the size of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(made) if isinstance(t, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return made


def largest_tensor(regularizer, n_tasks, **options):
    ours = make("full", n_tasks, nn.Linear(30, 40), hidden=(4,), **options)
    parameters, change = begin(regularizer, ours, range(n_tasks))
    with Largest() as largest:
        regularizer.penalty(parameters, change)
    return largest.numel


@pytest.mark.parametrize("cls", CLASSES)
def test_memory_of_the_quadratic_form_does_not_grow_with_the_tasks(cls):
    few, many = (largest_tensor(cls(form="quadratic"), n_tasks) for n_tasks in (2, 40))
    assert few == many == 40 * 31 * (4 + 1)  # the change of the output layer's weight and bias
    assert largest_tensor(cls(form="direct"), 40) >= 40 * 40 * 31


@pytest.mark.parametrize("options", [{}, {"targets": "stored"}, {"fisher_weights": True}], ids=str)
def test_the_direct_form_takes_as_many_tasks_at_a_time_as_the_budget_allows(options, monkeypatch):
    regularizer = FixedTarget(BETA, form="direct", **options)
    protected = range(20)
    ours = make("full", 20, nn.Linear(30, 40), activation=nn.Tanh, hidden=(4,))
    parameters, change = begin(regularizer, ours, protected)
    fisher = Samples(ours).of_tasks if regularizer.needs_fisher else None
    expected = plain_penalty(FixedTarget, ours, protected, parameters, change, fisher=fisher)
    sizes = []
    for tasks_at_a_time in (20, 15, 10, 1):
        budget = 40 * 31 * tasks_at_a_time + 5
        monkeypatch.setattr(output, "_BUDGET", budget)
        with Largest() as largest:
            found = regularizer.penalty(parameters, change, through_change=True)
        assert_penalty(found, expected)
        sizes.append(largest.numel)
    assert sizes == [40 * 31 * max(n, 4) for n in (20, 15, 10, 1)]  # the output layer has 4 inputs


def used_form(regularizer, ours, protected, monkeypatch):
    used = []
    with monkeypatch.context() as patch:
        for name, form in (("weights", "direct"), ("sum_of_squares", "quadratic")):
            original = getattr(Deviation, name)

            def spy(*arguments, original=original, form=form):
                used.append(form)
                return original(*arguments)

            patch.setattr(Deviation, name, spy)
        regularizer.penalty(*begin(regularizer, ours, protected))
    return used[0] if used else None


@pytest.mark.parametrize("cls", CLASSES)
def test_the_form_is_chosen_from_the_number_of_tasks_and_chunks(cls, monkeypatch):
    full, chunked = hypernetwork("full", 40), hypernetwork(n_tasks=40)
    assert used_form(cls(), full, range(40), monkeypatch) == "direct"
    monkeypatch.setattr(output, "_SMALL", 0)
    assert used_form(cls(), full, range(2), monkeypatch) == "direct"
    assert used_form(cls(), full, range(40), monkeypatch) == "quadratic"
    assert used_form(cls(), chunked, range(2), monkeypatch) == "quadratic"
    assert used_form(cls(tasks_per_step=2), full, range(40), monkeypatch) == "direct"
    assert used_form(cls(form="quadratic"), full, range(2), monkeypatch) == "quadratic"
    assert used_form(cls(form="direct"), full, range(40), monkeypatch) == "direct"
    assert used_form(cls(fisher_weights=True), full, range(40), monkeypatch) == "direct"
    assert used_form(FixedTarget(targets="stored"), full, range(40), monkeypatch) is None


@pytest.mark.parametrize("cls", CLASSES)
def test_single_precision_loses_little(cls):
    torch.set_default_dtype(torch.float32)
    of = nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 2))
    options = {"chunk_size": 8000, "hidden": (10, 10), "embedding_dim": 8}
    single = make("chunks that divide", 20, of, **options)
    double = copy.deepcopy(single).double()
    quadratic, direct = cls(BETA, form="quadratic"), cls(BETA, form="direct")
    for regularizer, ours in ((quadratic, single), (direct, double)):
        regularizer.before_experience(ours, Experience(tuple(range(20)), 50))
    moved = {n: p + 1e-2 * torch.randn_like(p) for n, p in single.shared_parameters().items()}
    change = {n: 1e-2 * torch.randn_like(p) for n, p in moved.items()}
    found = quadratic.penalty(moved, change, through_change=True)
    expected = direct.penalty(
        {n: p.double() for n, p in moved.items()},
        {n: c.double() for n, c in change.items()},
        through_change=True,
    )
    for part in ("gradients", "change_gradients"):
        exact, rounded = (
            torch.cat([g.flatten() for g in getattr(penalty, part).values()])
            for penalty in (expected, found)
        )
        assert (exact.dtype, rounded.dtype) == (torch.float64, torch.float32)
        assert (rounded - exact).norm() < 1e-5 * exact.norm()
    assert found.value.item() == pytest.approx(expected.value.item(), rel=1e-5)
