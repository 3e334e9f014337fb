import copy
import pickle
from collections import Counter
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from avalanche_hnet import EWC, FixedTarget, Jacobian, ValuePreserving
from avalanche_hnet.core.regularizers import Experience, output
from avalanche_hnet.core.regularizers.base import Penalty
from avalanche_hnet.core.regularizers.deviation import SHARED, UNUSED, Deviation, UnitClasses
from tests.oracles import assert_close
from tests.test_hypernetworks import as_theirs, authors, loop_weights, make

pytestmark = pytest.mark.usefixtures("float64")

KINDS = ["full", "chunks that divide", "chunks that do not divide", "chunks of tasks"]
CLASSES = [FixedTarget, ValuePreserving, Jacobian]
ALL_CLASSES = [*CLASSES, EWC]
FORMS = ["direct", "quadratic"]
OWNERS_OF_UNITS = torch.tensor([0, 2, 0, UNUSED, 1, 2, 3, 1, 0])
W = 48
BETA = 0.3


def target():
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, len(OWNERS_OF_UNITS)))


def hypernetwork(kind="chunks that do not divide", n_tasks=4, **options):
    return make(kind, n_tasks, target(), **{"activation": nn.Tanh} | options)


def owners():
    of_shared = torch.full((12,), SHARED)
    return torch.cat([of_shared, OWNERS_OF_UNITS.repeat_interleave(3), OWNERS_OF_UNITS])


class Samples:
    """A source of Fisher values that are made up."""

    def __init__(self, hypernetwork, seed=0, n_samples=30):
        self.n_samples = n_samples
        self.asked = []
        generator = torch.Generator().manual_seed(seed)
        self.of_theta = {
            n: torch.rand(p.shape, generator=generator)
            for n, p in hypernetwork.shared_parameters().items()
        }
        n_weights, n_tasks = hypernetwork.layout.n_weights, hypernetwork.n_tasks
        self.of_tasks = torch.rand(n_tasks, n_weights, generator=generator)

    def of_shared_parameters(self, max_samples):
        self.asked.append(max_samples)
        return self.of_theta

    def of_weights(self, task, max_samples):
        self.asked.append((task, max_samples))
        return self.of_tasks[task]


def begin(regularizer, hypernetwork, protected=(0, 1, 2), owners=None):
    """Begin an experience; what is then trained, by name, and a change of it.

    The values are elsewhere than at the beginning, and not yet in the hypernetwork.
    """
    if regularizer.needs_fisher and not isinstance(regularizer, EWC):
        regularizer.after_experience(Samples(hypernetwork), protected)
    regularizer.before_experience(hypernetwork, Experience(tuple(protected), 50, owners))
    trained = hypernetwork.shared_parameters()
    if regularizer.train_previous_embeddings:
        for task in protected:
            trained |= hypernetwork.task_parameters(task)
    parameters = {n: p.detach() + 0.3 * torch.randn_like(p) for n, p in trained.items()}
    return parameters, {n: 0.2 * torch.randn_like(p) for n, p in parameters.items()}


def snapshot(hypernetwork):
    return {n: t.clone() for n, t in hypernetwork.state_dict().items()}


def put(parameters, hypernetwork):
    """Let the hypernetwork have these parameters."""
    hypernetwork.load_state_dict(parameters, strict=False)


def plain_deviation(cls, hypernetwork, task, parameters, change, activation=torch.tanh):
    """What the class's docstring says, with loops and an explicit Jacobian."""
    before = dict(hypernetwork.named_parameters())  # where the experience began

    def h(parameters):
        return loop_weights(hypernetwork, task, before | parameters, activation)

    moved = {n: p + change[n] if n in change else p for n, p in parameters.items()}
    if cls is FixedTarget:
        return h(moved) - h({}).detach()
    if cls is ValuePreserving:
        return h(moved) - h(parameters)
    jacobian = torch.func.jacrev(h)(parameters)
    return sum(jacobian[n].flatten(1) @ change[n].flatten() for n in jacobian if n in change)


def plain_penalty(
    cls, hypernetwork, tasks, parameters, change=None, masks=None, fisher=None, **options
):
    """Value and gradients by autograd of the whole expression; β is 1."""
    own = {n: p.detach().clone().requires_grad_() for n, p in parameters.items()}
    change = {n: c.detach().clone().requires_grad_() for n, c in (change or {}).items()}
    value = 0.0
    for task in tasks:
        squares = plain_deviation(cls, hypernetwork, task, own, change, **options) ** 2
        if fisher is not None:
            squares = squares * fisher[task]
        if masks is not None:
            squares = squares[(masks == SHARED) | (masks == task)]
        value += squares.sum() / len(tasks)
    wanted = [*own.values(), *change.values()]
    found = torch.autograd.grad(value, wanted, materialize_grads=True)
    gradients = dict(zip(own, found[: len(own)], strict=True))
    return Penalty(value.detach(), gradients, dict(zip(change, found[len(own) :], strict=True)))


def assert_penalty(found, expected, beta=BETA, rtol=1e-9):
    """The same value and gradients, but for the strength that only ``found`` has."""
    torch.testing.assert_close(found.value, beta * expected.value, rtol=rtol, atol=1e-14)
    assert found.gradients.keys() == expected.gradients.keys()
    pairs = [(found.gradients[n], g, n) for n, g in expected.gradients.items()]
    if found.change_gradients:
        assert found.change_gradients.keys() == expected.change_gradients.keys()
        pairs += [(found.change_gradients[n], g, n) for n, g in expected.change_gradients.items()]
    scale = beta * max(float(gradient.abs().max()) for _, gradient, _ in pairs)
    for gradient, of_expected, name in pairs:
        torch.testing.assert_close(
            gradient, beta * of_expected, rtol=rtol, atol=rtol * scale + 1e-14, msg=name
        )


# Against the authors' code


AUTHORS_OPTIONS = [
    {"form": "direct", "lookahead": None},
    {"form": "direct"},
    {"form": "quadratic", "lookahead": None},
    {"form": "quadratic"},
    {"targets": "stored"},
    {"form": "direct", "mask_heads": True},
    {"form": "quadratic", "mask_heads": True},
    {"targets": "stored", "mask_heads": True, "lookahead": None},
    {"fisher_weights": True},
    {"fisher_weights": True, "mask_heads": True},
    {"fisher_weights": True, "mask_heads": True, "targets": "stored", "lookahead": None},
    {"form": "direct", "train_previous_embeddings": True},
    {"form": "quadratic", "train_previous_embeddings": True, "mask_heads": True},
]


@pytest.mark.parametrize("previous", ["targets", "prev_theta"])
@pytest.mark.parametrize("options", AUTHORS_OPTIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_fixed_target_equals_the_authors(kind, options, previous):
    theirs = pytest.importorskip("hypnettorch.utils.hnet_regularizer")
    mnets = pytest.importorskip("hypnettorch.mnets")
    ours, regularizer = hypernetwork(kind), FixedTarget(BETA, **options)
    before, _ = authors(ours, torch.tanh)
    parameters, change = begin(regularizer, ours, owners=owners())
    if regularizer.lookahead is None:
        change = None
    put(parameters, ours)
    found = regularizer.penalty(parameters, change)

    now, names = authors(ours, torch.tanh)
    if previous == "targets":
        arguments = {"targets": theirs.get_current_targets(3, before)}
    else:
        arguments = {
            "prev_theta": before.unconditional_params,
            "prev_task_embs": before.conditional_params,
        }
    theta = [n for n in names if n in ours.shared_parameters()]
    of_tasks = [n for n in names if n not in theta]
    if change is not None:
        arguments["dTheta"] = [as_theirs(n, change[n]) for n in theta]
        if regularizer.train_previous_embeddings:
            zero = {n: torch.zeros_like(p) for n, p in ours.named_parameters()}
            arguments["dTembs"] = [(zero | change)[n] for n in of_tasks]
    if regularizer.mask_heads:
        arguments["mnet"] = mnets.MLP(n_in=3, n_out=9, hidden_layers=[3], verbose=False)
        units = [(task == OWNERS_OF_UNITS).nonzero()[:, 0].tolist() for task in range(3)]
        arguments["inds_of_out_heads"] = units
    if regularizer.needs_fisher:
        fisher = Samples(ours).of_tasks[:3]
        arguments["fisher_estimates"] = [[*ours.layout.views(f).values()] for f in fisher]
    value = theirs.calc_fix_target_reg(now, 3, **arguments)
    value.backward()
    gradients = {n: as_theirs(n, p.grad) for n, p in zip(names, now.internal_params, strict=True)}
    expected = Penalty(value.detach(), {n: gradients[n] for n in parameters}, {})
    assert_penalty(found, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_value_preserving_equals_the_authors(kind, form):
    theirs = pytest.importorskip("hypnettorch.utils.hnet_regularizer")
    ours, regularizer = hypernetwork(kind), ValuePreserving(BETA, form=form)
    parameters, change = begin(regularizer, ours)
    put(parameters, ours)
    now, names = authors(ours, torch.tanh)
    value = theirs.calc_fix_target_reg(
        now,
        3,
        targets=[now.forward(cond_id=task) for task in range(3)],
        dTheta=[as_theirs(n, change[n]) for n in names if n in parameters],
    )
    value.backward()
    gradients = {n: as_theirs(n, p.grad) for n, p in zip(names, now.internal_params, strict=True)}
    expected = Penalty(value.detach(), {n: gradients[n] for n in parameters}, {})
    assert_penalty(regularizer.penalty(parameters, change), expected)


# Against the plain formula


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cls", CLASSES)
def test_value_and_gradients_equal_those_of_the_formula(cls, kind, form, masked):
    ours, regularizer = hypernetwork(kind), cls(BETA, form=form, mask_heads=masked)
    parameters, change = begin(regularizer, ours, owners=owners())
    masks = owners() if masked else None
    expected = plain_penalty(cls, ours, range(3), parameters, change, masks)
    assert_penalty(regularizer.penalty(parameters, change), expected)
    assert_penalty(regularizer.penalty(parameters, change, through_change=True), expected)


@pytest.mark.parametrize("cls", CLASSES)
def test_fisher_values_weigh_each_squared_deviation(cls):
    ours, regularizer = hypernetwork(), cls(BETA, fisher_weights=True, mask_heads=True)
    parameters, change = begin(regularizer, ours, owners=owners())
    fisher = Samples(ours).of_tasks
    expected = plain_penalty(cls, ours, range(3), parameters, change, owners(), fisher)
    assert_penalty(regularizer.penalty(parameters, change, through_change=True), expected)


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


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cls", CLASSES)
def test_gradients_equal_finite_differences(cls, form):
    regularizer = cls(BETA, form=form)
    parameters, change = begin(regularizer, hypernetwork(spectral_norm=True))
    penalty = regularizer.penalty(parameters, change, through_change=True)

    def value(step, along, along_change):
        return regularizer.penalty(
            {n: p + step * along[n] for n, p in parameters.items()},
            {n: c + step * along_change[n] for n, c in change.items()},
        ).value

    zero = {n: torch.zeros_like(p) for n, p in parameters.items()}
    for name, p in parameters.items():
        along = zero | {name: torch.randn_like(p)}
        for directions, gradients in (
            ((along, zero), penalty.gradients),
            ((zero, along), penalty.change_gradients),
        ):
            slope = (value(1e-5, *directions) - value(-1e-5, *directions)) / 2e-5
            expected = (gradients[name] * along[name]).sum()
            torch.testing.assert_close(expected, slope, rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize("hidden", [(), (5,), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cls", CLASSES)
def test_any_number_of_hidden_layers_is_regularised(cls, form, kind, hidden):
    ours, regularizer = hypernetwork(kind, hidden=hidden), cls(BETA, form=form)
    parameters, change = begin(regularizer, ours)
    expected = plain_penalty(cls, ours, range(3), parameters, change)
    assert_penalty(regularizer.penalty(parameters, change, through_change=True), expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("trained", ["output.weight", "output.bias", "trunk", "chunk_embeddings"])
@pytest.mark.parametrize("cls", CLASSES)
def test_parameters_that_are_not_trained_are_left_out(cls, trained, form):
    ours, regularizer = hypernetwork(), cls(BETA, form=form)
    parameters, change = begin(regularizer, ours)
    parameters = {n: p for n, p in parameters.items() if n.startswith(trained)}
    change = {n: change[n] for n in parameters}
    expected = plain_penalty(cls, ours, range(3), parameters, change)
    assert_penalty(regularizer.penalty(parameters, change, through_change=True), expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cls", CLASSES)
def test_a_change_of_what_is_not_trained_does_not_count(cls, form):
    ours, regularizer = hypernetwork(), cls(BETA, form=form)
    parameters, change = begin(regularizer, ours)
    trained = {n: p for n, p in parameters.items() if n not in ("output.bias", "trunk.0.weight")}
    expected = plain_penalty(cls, ours, range(3), trained, {n: change[n] for n in trained})
    assert_penalty(regularizer.penalty(trained, change), expected)
    found = regularizer.penalty(trained, change, through_change=True)
    of_change = {n: found.change_gradients.pop(n) for n in change.keys() - trained.keys()}
    assert not any(gradient.any() for gradient in of_change.values())
    assert_penalty(found, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cls", CLASSES)
def test_what_is_missing_in_the_change_is_zero(cls, form):
    ours, regularizer = hypernetwork(), cls(BETA, form=form)
    parameters, change = begin(regularizer, ours)
    part = {n: c for n, c in change.items() if n in ("trunk.0.weight", "output.bias")}
    expected = plain_penalty(cls, ours, range(3), parameters, part)
    found = regularizer.penalty(parameters, part, through_change=True)
    assert found.change_gradients.keys() == part.keys()
    assert_penalty(found, expected)
    for nothing in ({}, None):
        found = regularizer.penalty(parameters, nothing, through_change=True)
        assert not found.change_gradients
        if cls is FixedTarget:
            assert_penalty(found, plain_penalty(cls, ours, range(3), parameters))
        else:
            assert found.value == 0


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_penalised_where_the_experience_begins(form):
    ours, regularizer = hypernetwork(), FixedTarget(BETA, lookahead=None, form=form)
    begin(regularizer, ours)
    penalty = regularizer.penalty(ours.shared_parameters())
    assert penalty.value == 0
    assert not any(g.any() for g in penalty.gradients.values())


@pytest.mark.parametrize("online", [True, False])
def test_ewc_leaves_out_parameters_that_are_not_trained_any_more(online):
    ours, regularizer = hypernetwork(), EWC(BETA, online=online)
    for _ in experiences(ours, regularizer, 2):
        pass
    all_parameters, _ = begin(regularizer, ours)
    parameters = {n: p for n, p in all_parameters.items() if n.startswith("output")}
    expected = regularizer.penalty(all_parameters).gradients
    found = regularizer.penalty(parameters).gradients
    assert_close(found, {n: expected[n] for n in parameters})


# Which rows of the output layer count


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


# Forms, memory and precision


@pytest.mark.parametrize(
    "options", [{"form": "direct"}, {"form": "quadratic"}, {"targets": "stored"}], ids=str
)
@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_those_of_the_beginning(kind, options):
    ours, regularizer = hypernetwork(kind, spectral_norm=True), FixedTarget(BETA, **options)
    parameters, change = begin(regularizer, ours, (2, 0))
    found = regularizer.penalty(parameters, change)
    put({n: p + 1 for n, p in parameters.items()}, ours)
    assert_penalty(regularizer.penalty(parameters, change), found, beta=1, rtol=1e-12)


def test_stored_targets_equal_recomputed_ones():
    ours, found = hypernetwork(spectral_norm=True), []
    for targets in ("stored", "recomputed"):
        torch.manual_seed(1)
        regularizer = FixedTarget(BETA, targets=targets, train_previous_embeddings=True)
        found.append(regularizer.penalty(*begin(regularizer, ours), through_change=True))
    assert_penalty(*found, beta=1)


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


# Which tasks


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("protected", [(2, 0), (1,), (3, 2, 1, 0)])
@pytest.mark.parametrize("cls", CLASSES)
def test_protected_tasks_and_no_others_are_regularised(cls, protected, form):
    ours, regularizer = hypernetwork(), cls(BETA, form=form, mask_heads=True)
    parameters, change = begin(regularizer, ours, protected, owners())
    found = regularizer.penalty(parameters, change)
    assert_penalty(found, plain_penalty(cls, ours, protected, parameters, change, owners()))
    with torch.no_grad():  # tasks of the experience are free
        for task in {0, 1, 2, 3} - {*protected}:
            ours.embeddings[task].add_(1)
    ours.add_task()
    assert torch.equal(regularizer.penalty(parameters, change).value, found.value)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cls", CLASSES)
def test_tasks_per_step_are_drawn_uniformly(cls, form):
    ours, n, protected = hypernetwork(n_tasks=6), 240, (4, 1, 0, 3)
    every = cls(BETA, form=form)
    parameters, change = begin(every, ours, protected)
    pairs = {
        float(BETA * plain_penalty(cls, ours, pair, parameters, change).value): pair
        for pair in combinations(protected, 2)
    }
    regularizer = cls(BETA, form=form, tasks_per_step=2)
    begin(regularizer, ours, protected)
    state = torch.random.get_rng_state()
    values = torch.stack([regularizer.penalty(parameters, change).value for _ in range(n)])
    assert torch.equal(torch.random.get_rng_state(), state)
    drawn = Counter(min(pairs, key=lambda v: abs(v - value)) for value in values.tolist())
    for value in values.tolist():
        nearest = min(pairs, key=lambda v: abs(v - value))
        assert value == pytest.approx(nearest, rel=1e-9)
    assert len(drawn) == 6
    assert max(abs(count - n / 6) for count in drawn.values()) < 4 * (n * 5 / 36) ** 0.5


@pytest.mark.parametrize("cls", CLASSES)
def test_tasks_are_drawn_with_the_generator(cls):
    ours = hypernetwork(n_tasks=6)

    def values(generator=None):
        torch.manual_seed(1)
        regularizer = cls(tasks_per_step=2, generator=generator)
        parameters, change = begin(regularizer, ours, range(6))
        return [regularizer.penalty(parameters, change).value.item() for _ in range(8)]

    assert values() == values()
    seven = values(torch.Generator().manual_seed(7))
    assert seven == values(torch.Generator().manual_seed(7))
    assert seven != values()


@pytest.mark.parametrize("cls", CLASSES)
def test_draws_go_on_where_they_were_saved(cls):
    ours, regularizer, restored = hypernetwork(n_tasks=6), *(cls(tasks_per_step=2) for _ in "ab")
    parameters, change = begin(regularizer, ours, range(6))
    for _ in range(3):
        regularizer.penalty(parameters, change)
    restored.load_state_dict(regularizer.state_dict())
    restored.before_experience(ours, Experience(tuple(range(6)), 50))
    for _ in range(8):
        found, expected = (r.penalty(parameters, change).value for r in (restored, regularizer))
        assert torch.equal(found, expected)


@pytest.mark.parametrize("tasks_per_step", [3, 4, 100])
def test_no_more_tasks_are_drawn_than_there_are(tasks_per_step):
    ours, regularizer = hypernetwork(), FixedTarget(BETA, tasks_per_step=tasks_per_step)
    parameters, change = begin(regularizer, ours)
    expected = plain_penalty(FixedTarget, ours, range(3), parameters, change)
    assert_penalty(regularizer.penalty(parameters, change), expected)


def test_the_next_experience_has_targets_and_tasks_of_its_own():
    ours = hypernetwork()
    for options in ({"form": "direct"}, {"form": "quadratic"}, {"targets": "stored"}):
        regularizer = FixedTarget(BETA, **options)
        parameters, _ = begin(regularizer, ours, (0,))
        regularizer.penalty(parameters)
        put(parameters, ours)
        parameters, change = begin(regularizer, ours, (1, 2))
        expected = plain_penalty(FixedTarget, ours, (1, 2), parameters, change)
        assert_penalty(regularizer.penalty(parameters, change), expected)


# Strength


@pytest.mark.parametrize("cls", CLASSES)
def test_beta_scales_value_and_gradients(cls):
    ours = hypernetwork()
    found = []
    for beta in (1, 2.5):
        torch.manual_seed(1)
        regularizer = cls(beta)
        found.append(regularizer.penalty(*begin(regularizer, ours), through_change=True))
    assert_penalty(found[1], found[0], beta=2.5, rtol=1e-12)


@pytest.mark.parametrize("cls", ALL_CLASSES)
def test_without_strength_or_tasks_nothing_is_active(cls):
    ours = hypernetwork()
    for beta, protected, active in ((0, (0, 1), False), (0.1, (0,), True)):
        regularizer = cls(beta)
        regularizer.before_experience(ours, Experience(protected, 50))
        assert regularizer.is_active == active
    regularizer = cls(0.1)
    regularizer.before_experience(ours, Experience((), 50))
    assert regularizer.is_active == (cls is EWC)  # it has its prior then


# What is left as it was


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cls", CLASSES)
def test_dropout_and_power_iterations_are_off(cls, form):
    ours, regularizer = hypernetwork(dropout=0.5, spectral_norm=True), cls(BETA, form=form)
    ours.eval()
    parameters, change = begin(regularizer, ours)
    expected = regularizer.penalty(parameters, change, through_change=True)
    ours.train()
    for training in (False, True):
        again = cls(BETA, form=form)
        ours.train(training)
        begin(again, ours)
        ours.train()
        found = again.penalty(parameters, change, through_change=True)
        assert_penalty(found, expected, beta=1, rtol=1e-12)


@pytest.mark.parametrize(
    "options",
    [{"form": "direct"}, {"form": "quadratic"}, {"targets": "stored"}],
    ids=str,
)
@pytest.mark.parametrize("cls", ALL_CLASSES)
def test_nothing_but_the_penalty_comes_out(cls, options):
    if cls is EWC:
        options = {}
    elif cls is not FixedTarget:
        options.pop("targets", None)
    ours, regularizer = hypernetwork(dropout=0.5, spectral_norm=True), cls(BETA, **options)
    ours([0, 1]).sum().backward()
    ours.trunk[2].eval()
    ours.embeddings[0].requires_grad_(False)
    grads = {n: None if p.grad is None else p.grad.clone() for n, p in ours.named_parameters()}
    modes = [module.training for module in ours.modules()]
    state, random = snapshot(ours), torch.random.get_rng_state()

    parameters, change = begin(regularizer, ours)
    torch.random.set_rng_state(random)
    given = [{n: t.clone() for n, t in tensors.items()} for tensors in (parameters, change)]
    with torch.no_grad():
        penalty = regularizer.penalty(parameters, change, through_change=True)
        regularizer.penalty(ours.shared_parameters(), change)
    assert not any(t.requires_grad for t in tree_leaves(penalty))
    assert penalty.value.dim() == 0
    assert penalty.gradients.keys() == parameters.keys()
    for tensors, before in zip((parameters, change), given, strict=True):
        assert all(torch.equal(t, before[n]) for n, t in tensors.items())
        assert not any(t.requires_grad for t in tensors.values())

    assert all(torch.equal(state[n], t) for n, t in ours.state_dict().items())
    assert state.keys() == ours.state_dict().keys()
    assert [module.training for module in ours.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not ours.embeddings[0].requires_grad
    for name, p in ours.named_parameters():
        assert (p.grad is None) == (grads[name] is None)
        assert p.grad is None or torch.equal(p.grad, grads[name])
        assert p.requires_grad == (name != "embeddings.0")


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))]
)
@pytest.mark.parametrize("cls", ALL_CLASSES)
def test_a_copy_goes_on_with_the_copy_of_the_hypernetwork(cls, duplicate):
    ours, regularizer = hypernetwork(), cls(BETA)
    parameters, change = begin(regularizer, ours)
    expected = regularizer.penalty(parameters, change)
    twins, twin = duplicate((ours, regularizer))
    twin.require(twins)
    assert_penalty(twin.penalty(parameters, change), expected, beta=1, rtol=1e-15)


def test_a_strategy_can_read_what_a_regularizer_expects():
    for cls in CLASSES:
        regularizer = cls()
        assert regularizer.lookahead == "optimizer"
        assert cls(lookahead="sgd", differentiable_lookahead=True).differentiable_lookahead
        assert not regularizer.differentiable_lookahead
        assert not regularizer.train_previous_embeddings
        assert not regularizer.mask_heads
        assert cls(lookahead="sgd").lookahead == "sgd"
        assert cls(fisher_weights=True).needs_fisher
        assert cls(mask_heads=True).mask_heads
    assert FixedTarget(lookahead=None).lookahead is None
    assert FixedTarget(train_previous_embeddings=True).train_previous_embeddings
    assert EWC().lookahead is None
    assert EWC().needs_fisher
    assert [cls().is_log_prior for cls in ALL_CLASSES] == [False, False, False, True]


def test_a_penalty_can_be_scaled():
    ours, regularizer = hypernetwork(), ValuePreserving(BETA)
    penalty = regularizer.penalty(*begin(regularizer, ours), through_change=True)
    assert_penalty(penalty.scaled(2.5), penalty, beta=2.5)


# EWC


def experiences(ours, regularizer, n=4):
    """What is trained and sampled in one experience after the other, and the penalty in each."""
    for experience in range(n):
        samples = Samples(ours, seed=experience, n_samples=20 + experience)
        regularizer.before_experience(
            ours, Experience(tuple(range(experience)), samples.n_samples, owners())
        )
        noise = torch.Generator().manual_seed(experience)
        parameters = {
            n: p.detach() + 0.3 * torch.randn(p.shape, generator=noise)
            for n, p in ours.shared_parameters().items()
        }
        penalty = regularizer.penalty(parameters) if regularizer.is_active else None
        yield parameters, samples, penalty
        put(parameters, ours)
        regularizer.after_experience(samples, (experience,))


@pytest.mark.parametrize("gamma", [1.0, 0.7, 0.0])
def test_online_ewc_has_the_prior_once_and_a_precision_that_decays(gamma):
    regularizer = EWC(BETA, gamma=gamma, prior_variance=2.0, n_fisher=7)
    precision, mean = {}, {}
    for parameters, samples, found in experiences(hypernetwork(), regularizer):
        value, gradients = 0.0, {}
        for name, p in parameters.items():
            p = p.clone().requires_grad_()
            if not precision or name not in precision:
                part = (p**2).sum() / 4
                precision[name] = torch.full_like(p, 1 / 2)
            else:
                part = BETA / 2 * (precision[name] * (p - mean[name]) ** 2).sum()
            part = part / samples.n_samples
            (gradients[name],) = torch.autograd.grad(part, [p])
            value += part.detach()
            fisher = samples.of_theta[name]
            precision[name] = 0.5 + gamma * (precision[name] - 0.5) + samples.n_samples * fisher
            mean[name] = p.detach()
        assert_penalty(found, Penalty(value, gradients, {}), beta=1)
    assert_close(regularizer.posterior.precision, precision)
    assert_close(regularizer.posterior.mean, mean)


def test_ewc_of_all_experiences_has_one_penalty_for_each_and_the_prior():
    regularizer = EWC(BETA, online=False, prior_variance=2.0, n_fisher=7)
    earlier = []
    for parameters, samples, found in experiences(hypernetwork(), regularizer):
        del samples.of_theta["output.bias"]  # what is missing is zero
        own = {n: p.clone().requires_grad_() for n, p in parameters.items()}
        value = sum((p**2).sum() / 4 for p in own.values())
        for n_samples, fisher, centre in earlier:
            for name, f in fisher.items():
                value += BETA / 2 * n_samples * (f * (own[name] - centre[name]) ** 2).sum()
        value = value / samples.n_samples
        gradients = torch.autograd.grad(value, [*own.values()])
        expected = Penalty(value.detach(), dict(zip(own, gradients, strict=True)), {})
        assert_penalty(found, expected, beta=1)
        earlier.append((samples.n_samples, samples.of_theta, parameters))


@pytest.mark.parametrize("online", [True, False])
def test_ewc_looks_at_theta_and_at_nothing_else(online):
    ours, regularizer = hypernetwork("chunks of tasks"), EWC(BETA, online=online)
    for _ in experiences(ours, regularizer, 3):
        pass
    parameters, change = begin(regularizer, ours)
    found = regularizer.penalty(parameters)
    with torch.no_grad():
        for task in range(4):
            for p in ours.task_parameters(task).values():
                p.add_(1)
    again = regularizer.penalty(parameters, change, through_change=True)
    assert torch.equal(again.value, found.value)
    assert again.change_gradients == {}


@pytest.mark.parametrize("online", [True, False])
def test_gradients_of_ewc_equal_finite_differences(online):
    ours, regularizer = hypernetwork(), EWC(BETA, online=online)
    for _ in experiences(ours, regularizer, 3):
        pass
    parameters, along = begin(regularizer, ours)
    penalty = regularizer.penalty(parameters)

    def value(step):
        return regularizer.penalty({n: p + step * along[n] for n, p in parameters.items()}).value

    slope = (value(1e-4) - value(-1e-4)) / 2e-4
    expected = sum((g * along[n]).sum() for n, g in penalty.gradients.items())
    torch.testing.assert_close(expected, slope, rtol=1e-8, atol=0)


# Fisher values and saving


@pytest.mark.parametrize("n_fisher", [None, 7])
def test_fisher_values_are_computed_of_what_was_learned(n_fisher):
    ours = hypernetwork()
    regularizer, samples = FixedTarget(fisher_weights=True, n_fisher=n_fisher), Samples(ours)
    regularizer.after_experience(samples, (2, 0))
    assert samples.asked == [(2, n_fisher), (0, n_fisher)]
    for regularizer in (EWC(n_fisher=n_fisher), EWC(online=False, n_fisher=n_fisher)):
        samples = Samples(ours)
        regularizer.before_experience(ours, Experience((), 30))
        regularizer.after_experience(samples, (0,))
        assert samples.asked == [n_fisher]
    for regularizer in (FixedTarget(), ValuePreserving(), Jacobian()):
        assert not regularizer.needs_fisher
        samples = Samples(ours)
        regularizer.after_experience(samples, (0,))
        assert samples.asked == []


REGULARIZERS = {
    "fixed target": lambda: FixedTarget(BETA, fisher_weights=True),
    "value preserving": lambda: ValuePreserving(BETA, fisher_weights=True),
    "jacobian": lambda: Jacobian(BETA),
    "online": lambda: EWC(BETA, gamma=0.9, prior_variance=2.0),
    "ewc": lambda: EWC(BETA, online=False),
}


@pytest.mark.parametrize("name", REGULARIZERS)
def test_state_survives_saving(name, tmp_path):
    ours, regularizer, restored = hypernetwork(), REGULARIZERS[name](), REGULARIZERS[name]()
    for _ in experiences(ours, regularizer, 3):
        pass
    torch.save(regularizer.state_dict(), tmp_path / "regularizer.pt")
    state = torch.load(tmp_path / "regularizer.pt", weights_only=True)
    restored.load_state_dict(state)
    for tensor in tree_leaves(state):  # a copy has been loaded
        if isinstance(tensor, torch.Tensor):
            tensor.zero_()
    found = []
    for each in (regularizer, restored):
        each.before_experience(ours, Experience((0, 1, 2), 50))
        parameters = {n: p.detach() + 0.1 for n, p in ours.shared_parameters().items()}
        change = {n: 0.1 * torch.ones_like(p) for n, p in parameters.items()}
        found.append(each.penalty(parameters, change))
    assert found[0].value > 0
    assert_penalty(found[1], found[0], beta=1, rtol=1e-15)


@pytest.mark.parametrize(
    ("regularizer", "state"),
    [
        (FixedTarget(), EWC().state_dict()),
        (EWC(), FixedTarget().state_dict()),
        (Jacobian(), {}),
    ],
)
def test_state_of_another_kind_is_refused(regularizer, state):
    with pytest.raises(ValueError, match=r"state must have the keys .*got \["):
        regularizer.load_state_dict(state)


@pytest.mark.parametrize("online", [True, False])
def test_online_ewc_and_the_other_do_not_take_each_others_state(online):
    regularizer = EWC(online=online)
    for _ in experiences(hypernetwork(), regularizer, 2):
        pass
    with pytest.raises(ValueError, match=f"online={online}"):
        EWC(online=not online).load_state_dict(regularizer.state_dict())


@pytest.mark.parametrize("cls", CLASSES)
def test_state_of_another_regularizer_is_refused(cls):
    for other in CLASSES:
        if other is cls:
            cls().load_state_dict(other().state_dict())
            continue
        with pytest.raises(ValueError, match=f"made by {other.__name__}, but this is"):
            cls().load_state_dict(other().state_dict())


@pytest.mark.parametrize("length", [1, W + 1])
def test_fisher_values_must_be_those_of_all_weights(length):
    regularizer = FixedTarget(fisher_weights=True)
    state = regularizer.state_dict() | {"fisher": {"0": torch.ones(length)}}
    regularizer.load_state_dict(state)
    with pytest.raises(ValueError, match=f"task 0 must be a vector of {W} numbers.*{length}"):
        regularizer.before_experience(hypernetwork(), Experience((0,), 50))


def test_fisher_values_follow_the_hypernetworks_type():
    ours, regularizer = hypernetwork().float(), FixedTarget(BETA, fisher_weights=True)
    regularizer.after_experience(Samples(ours), (0, 1, 2))
    ours.double()
    parameters, change = begin(regularizer, ours)
    assert regularizer.penalty(parameters, change).value.dtype == torch.float64


# What is refused


@pytest.mark.parametrize("cls", ALL_CLASSES)
@pytest.mark.parametrize("beta", [-0.1, float("nan"), float("inf")])
def test_bad_strengths_are_refused(cls, beta):
    with pytest.raises(ValueError, match=f"beta must be at least 0 and finite, got {beta}"):
        cls(beta)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lookahead": "adam"}, ValueError, "lookahead must be one of .*'sgd'.*got 'adam'"),
        ({"form": "cubic"}, ValueError, "form must be one of .*'quadratic'.*got 'cubic'"),
        ({"tasks_per_step": 0}, ValueError, "tasks_per_step must be at least 1, got 0"),
        ({"tasks_per_step": 1.5}, TypeError, "tasks_per_step must be an integer.*got 1.5"),
        (
            {"n_fisher": 0, "fisher_weights": True},
            ValueError,
            "n_fisher must be at least 1, got 0",
        ),
        ({"n_fisher": 5}, ValueError, "n_fisher=5 needs fisher_weights=True"),
        (
            {"fisher_weights": True, "form": "quadratic"},
            ValueError,
            "fisher_weights=True does not go with form='quadratic'",
        ),
    ],
)
def test_bad_arguments_are_refused(cls, options, error, message):
    with pytest.raises(error, match=message):
        cls(**options)


@pytest.mark.parametrize(
    ("make_regularizer", "message"),
    [
        (
            lambda: FixedTarget(differentiable_lookahead=True, lookahead=None),
            "differentiable_lookahead=True needs .*lookahead=None",
        ),
        (
            lambda: FixedTarget(targets="stored", form="quadratic"),
            "targets='stored' does not go with form='quadratic'",
        ),
        (lambda: FixedTarget(targets="kept"), "targets must be one of .*'stored'.*got 'kept'"),
        (lambda: ValuePreserving(lookahead=None), "ValuePreserving needs a .*lookahead=None"),
        (lambda: Jacobian(lookahead=None), "Jacobian needs a lookahead .*lookahead=None"),
        (lambda: EWC(gamma=1.5), r"gamma must lie in \[0, 1\], got 1.5"),
        (lambda: EWC(gamma=float("nan")), r"gamma must lie in \[0, 1\], got nan"),
        (lambda: EWC(gamma=0.5, online=False), "gamma=0.5 needs online=True"),
        (lambda: EWC(n_fisher=0), "n_fisher must be at least 1, got 0"),
        (lambda: EWC(prior_variance=0), "prior_variance must be positive and finite, got 0"),
    ],
)
def test_illegal_combinations_are_refused(make_regularizer, message):
    with pytest.raises(ValueError, match=message):
        make_regularizer()


@pytest.mark.parametrize("cls", CLASSES)
def test_masks_need_output_units_of_tasks(cls):
    with pytest.raises(ValueError, match="mask_heads=True needs a model whose tasks have output"):
        begin(cls(mask_heads=True), hypernetwork())


def test_fisher_weights_need_the_fisher_of_all_protected_tasks():
    ours, regularizer = hypernetwork(), FixedTarget(fisher_weights=True)
    regularizer.after_experience(Samples(ours), (1,))
    with pytest.raises(ValueError, match=r"fisher_weights=True.*tasks \[0, 2\] is not known"):
        regularizer.before_experience(ours, Experience((0, 1, 2), 50))


@pytest.mark.parametrize("cls", ALL_CLASSES)
def test_another_hypernetwork_is_refused(cls):
    ours, regularizer = hypernetwork(), cls(BETA)
    regularizer.require(ours)
    parameters, change = begin(regularizer, ours)
    before = regularizer.penalty(parameters, change)
    for other in (hypernetwork("full"), copy.deepcopy(ours)):
        for use in (regularizer.require, lambda h: begin(regularizer, h)):
            with pytest.raises(ValueError, match=f"{cls.__name__} .*another hypernetwork"):
                use(other)
    assert torch.equal(regularizer.penalty(parameters, change).value, before.value)


@pytest.mark.parametrize("cls", ALL_CLASSES)
def test_an_experience_must_have_begun(cls):
    parameters = hypernetwork().shared_parameters()
    with pytest.raises(RuntimeError, match="before_experience must be called first"):
        cls().penalty(parameters)


@pytest.mark.parametrize("wrong", [W - 1, W + 1])
def test_owners_must_be_those_of_all_weights(wrong):
    with pytest.raises(ValueError, match=f"owners.*{W}.*{wrong}"):
        begin(
            FixedTarget(mask_heads=True),
            hypernetwork(),
            owners=torch.full((wrong,), SHARED),
        )
