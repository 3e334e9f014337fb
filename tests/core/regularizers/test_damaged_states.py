"""Damaged states of posteriors and regularisers load unchanged or not at all, by name."""

import io

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avalanche_hnet import EWC, FixedTarget, Jacobian, KroneckerPosterior, ValuePreserving
from avalanche_hnet.core.posterior.gaussian import GaussianPosterior
from tests.support import damage
from tests.support.kronecker import LAYOUTS, assert_same_state, parameters_of, random_fisher
from tests.support.regularizers import experiences, hypernetwork

KRONECKER = {"structure": "kronecker"}


def updated(posterior):
    """After one experience in which a part of the elements was active."""
    layout, phi = LAYOUTS["linear"][1], parameters_of("linear")
    fisher = random_fisher({"layer": layout}, phi, 3)
    active = {n: torch.ones_like(p, dtype=torch.bool) for n, p in phi.items()}
    active["norm"][0] = False
    diagonal = isinstance(posterior, GaussianPosterior)
    posterior.update(phi, fisher.whole_diagonal() if diagonal else fisher, 5, active)
    return posterior


def trained(regularizer):
    for _ in experiences(hypernetwork(), regularizer, 2):
        pass
    return regularizer


MAKE = {
    "diagonal": (updated, lambda: GaussianPosterior(0.5)),
    "kronecker": (updated, lambda: KroneckerPosterior(0.5)),
    "fixed target": (trained, lambda: FixedTarget(fisher_weights=True)),
    "value preserving": (trained, lambda: ValuePreserving(fisher_weights=True)),
    "jacobian": (trained, Jacobian),
    "ewc": (trained, EWC),
    "ewc, not online": (trained, lambda: EWC(online=False)),
    "ewc, kronecker": (trained, lambda: EWC(**KRONECKER)),
    "ewc, kronecker, not online": (trained, lambda: EWC(online=False, **KRONECKER)),
}
STATES = {name: train(make()).state_dict() for name, (train, make) in MAKE.items()}
KINDS = st.sampled_from([*MAKE])
EASY = settings(max_examples=100, deadline=None, suppress_health_check=[*HealthCheck])


def loaded_or_refused(kind, damaged):
    """The state after loading, or None if it was refused and nothing has changed."""
    fresh = MAKE[kind][1]()
    before = fresh.state_dict()
    try:
        fresh.load_state_dict(damaged)
    except ValueError as error:
        message = str(error)
    else:
        return fresh.state_dict()
    assert any(word in message for word in ("state", "likelihood"))
    assert_same_state(fresh.state_dict(), before)
    return None


@pytest.mark.parametrize("kind", MAKE)
def test_without_damage_it_loads(kind):
    file = io.BytesIO()
    torch.save(STATES[kind], file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert_same_state(loaded_or_refused(kind, state), STATES[kind])
    old = damage.without_checksums(STATES[kind])
    assert_same_state(loaded_or_refused(kind, old), STATES[kind])


@EASY
@given(KINDS, st.data())
def test_a_flipped_bit_is_found(kind, data):
    assert loaded_or_refused(kind, data.draw(damage.with_a_flipped_bit(STATES[kind]))) is None


@EASY
@given(KINDS, st.data())
def test_a_flipped_bit_of_a_file_is_found(kind, data):
    """If PyTorch can read the file at all."""
    file = io.BytesIO()
    torch.save(STATES[kind], file)
    content = bytearray(file.getvalue())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        damaged = torch.load(io.BytesIO(bytes(content)), weights_only=True)
    except Exception:  # PyTorch's own, of many kinds
        return
    found = loaded_or_refused(kind, damaged)
    if found is not None:
        assert_same_state(found, STATES[kind])


@EASY
@given(KINDS, st.data())
def test_a_missing_renamed_or_odd_entry_is_found(kind, data):
    found = loaded_or_refused(kind, data.draw(damage.with_another_entry(STATES[kind])))
    if found is not None:
        assert_same_state(found, STATES[kind])


@EASY
@given(KINDS, st.data())
def test_older_states_give_no_foreign_error(kind, data):
    old = damage.without_checksums(STATES[kind])
    odd = st.one_of(
        damage.with_another_entry(old),
        damage.with_other_values(old),
        damage.with_a_flipped_bit(old),
    )
    loaded_or_refused(kind, data.draw(odd))


def old_state(kind):
    return damage.without_checksums(STATES[kind])


def changed(kind, path, change):
    """A copy of the state without checksums, and with another value there."""
    state = torch.load(saved(old_state(kind)), weights_only=True)
    damage.put_at(state, path, change(damage.at(state, path)))
    return state


def saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def filled(value):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[0] = value
        return tensor

    return change


def skewed(tensor):
    tensor = tensor.clone()
    tensor[:, 0, 1] += tensor.abs().max()
    return tensor


def indefinite(tensor):
    """With its diagonal, and correlations beyond 1."""
    tensor = tensor.clone()
    tensor[:, 0, 1] = tensor[:, 1, 0] = 0.9 * tensor.abs().max()
    tensor[:, 0, 2] = tensor[:, 2, 0] = 0.9 * tensor.abs().max()
    tensor[:, 1, 2] = tensor[:, 2, 1] = -0.9 * tensor.abs().max()
    return tensor


NOT_FINITE = [(filled(v), "must be finite") for v in (float("nan"), float("inf"))]
INTEGERS = (lambda t: t.to(torch.int32), "must be of the type .* got torch.int32")
POSTERIOR_CASES = [
    *((("precision", "norm"), *case) for case in NOT_FINITE),
    *((("mean", "layer.weight"), *case) for case in NOT_FINITE),
    (("precision", "norm"), filled(0.0), r"\['norm'\] must be at least that of the prior, 2, but"),
    (("precision", "norm"), filled(-1.0), "must be at least that of the prior"),
    (("precision", "norm"), *INTEGERS),
    (("precision", "norm"), torch.Tensor.double, "must be of the type of"),
    (("precision", "norm"), lambda p: 2 * p, r"state\['known'\]\['norm'\].*precision"),
    (("known", "norm"), torch.zeros_like, r"state\['known'\]\['norm'\].*mean"),
    (("known", "norm"), torch.Tensor.byte, "must be of the type torch.bool, got torch.uint8"),
    (("prior_mean", "norm"), filled(1.0), "must be zero for prior_mean='zero'"),
    (("mean", "norm"), lambda t: t[:2], "names and shapes of state"),
]
FACTOR = ("layers", "layer", "inputs", 0)
LAYOUT = ("layers", "layer", "layout")
FISHER = ("fisher", "0")
CASES = [
    *(("diagonal", *case) for case in POSTERIOR_CASES),
    *(("kronecker", *case) for case in POSTERIOR_CASES),
    *(("kronecker", FACTOR, *case) for case in [*NOT_FINITE, INTEGERS]),
    (
        "kronecker",
        FACTOR,
        filled(-1.0),
        r"the diagonal of .*\['inputs'\]\[0\] must not be negative",
    ),
    ("kronecker", FACTOR, skewed, r"\['inputs'\]\[0\] must be symmetric"),
    ("kronecker", FACTOR, indefinite, r"\['inputs'\]\[0\] must be positive semidefinite"),
    ("kronecker", (*LAYOUT, "groups"), lambda _: 0, r"\['groups'\] must divide"),
    ("kronecker", (*LAYOUT, "row_shape"), lambda _: (7,), r"\['row_shape'\] must be \(4,\)"),
    ("kronecker", (*LAYOUT, "is_table"), lambda _: 1, r"\['is_table'\] does not fit"),
    *(("fixed target", FISHER, *case) for case in [*NOT_FINITE, INTEGERS]),
    ("fixed target", FISHER, filled(-1.0), r"\['fisher'\]\['0'\] must not be negative"),
    ("fixed target", FISHER, lambda t: t[:3], "as many as other"),
    ("fixed target", ("fisher",), lambda f: {"first": f["0"]}, "must be of a task's number"),
    ("fixed target", ("fisher",), lambda _: [], "must be a dictionary of tensors, got list"),
    ("jacobian", ("generator",), lambda g: g[:10], "must be the state of a torch.Generator on cpu"),
    ("value preserving", ("kind",), lambda _: "Jacobian", "made by Jacobian"),
    ("ewc", ("posterior", "precision", "output.bias"), filled(-1.0), "at least that of the prior"),
    ("ewc", ("experiences",), lambda _: 3, "must be a list, got int"),
    *(
        ("ewc, not online", ("experiences", 1, "weights", "output.bias"), change, message)
        for change, message in [
            *NOT_FINITE,
            (filled(-1.0), r"state\['experiences'\]\[1\]\['weights'\].* must not be negative"),
            (lambda t: t[:1], "must have its equal"),
        ]
    ),
    (
        "ewc, kronecker, not online",
        ("experiences", 0, "layers", "trunk.0", "outputs", 0),
        skewed,
        r"\['experiences'\]\[0\]\['layers'\]\['trunk.0'\]\['outputs'\]\[0\] must be symmetric",
    ),
]


@pytest.mark.parametrize(("kind", "path", "change", "message"), CASES)
def test_older_states_with_impossible_values_are_refused(kind, path, change, message):
    fresh = MAKE[kind][1]()
    before = fresh.state_dict()
    with pytest.raises(ValueError, match=message):
        fresh.load_state_dict(changed(kind, path, change))
    assert_same_state(fresh.state_dict(), before)
