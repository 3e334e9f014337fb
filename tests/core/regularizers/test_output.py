from collections import Counter
from itertools import combinations

import pytest
import torch

from avalanche_hnet import FixedTarget
from avalanche_hnet.core.regularizers import Experience
from avalanche_hnet.core.regularizers.deviation import SHARED
from tests.support.regularizers import (
    BETA,
    CLASSES,
    FORMS,
    KINDS,
    Samples,
    W,
    assert_penalty,
    begin,
    hypernetwork,
    owners,
    plain_penalty,
    put,
)

pytestmark = pytest.mark.usefixtures("float64")


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


# What is refused


@pytest.mark.parametrize("cls", CLASSES)
def test_masks_need_output_units_of_tasks(cls):
    with pytest.raises(ValueError, match="mask_heads=True needs a model whose tasks have output"):
        begin(cls(mask_heads=True), hypernetwork())


def test_fisher_weights_need_the_fisher_of_all_protected_tasks():
    ours, regularizer = hypernetwork(), FixedTarget(fisher_weights=True)
    regularizer.after_experience(Samples(ours), (1,))
    with pytest.raises(ValueError, match=r"fisher_weights=True.*tasks \[0, 2\] is not known"):
        regularizer.before_experience(ours, Experience((0, 1, 2), 50))


@pytest.mark.parametrize("wrong", [W - 1, W + 1])
def test_owners_must_be_those_of_all_weights(wrong):
    with pytest.raises(ValueError, match=f"owners.*{W}.*{wrong}"):
        begin(
            FixedTarget(mask_heads=True),
            hypernetwork(),
            owners=torch.full((wrong,), SHARED),
        )
