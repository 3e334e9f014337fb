import copy
import pickle

import pytest
import torch
from torch.utils._pytree import tree_leaves

from avalanche_hnet import EWC, FixedTarget, Jacobian, ValuePreserving
from avalanche_hnet.core.regularizers import Experience
from tests.support.regularizers import (
    BETA,
    CLASSES,
    FORMS,
    Samples,
    W,
    assert_penalty,
    begin,
    experiences,
    hypernetwork,
)

pytestmark = pytest.mark.usefixtures("float64")


ALL_CLASSES = [*CLASSES, EWC]


def snapshot(hypernetwork):
    return {n: t.clone() for n, t in hypernetwork.state_dict().items()}


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


# Fisher values and saving


@pytest.mark.parametrize("n_fisher", [None, 7])
def test_fisher_values_are_computed_of_what_was_learned(n_fisher):
    ours = hypernetwork()
    regularizer, samples = FixedTarget(fisher_weights=True, n_fisher=n_fisher), Samples(ours)
    regularizer.after_experience(samples, (2, 0))
    assert samples.asked == [(2, n_fisher), (0, n_fisher)]
    for options in ({}, {"online": False}, {"structure": "kronecker"}):
        regularizer, samples = EWC(n_fisher=n_fisher, **options), Samples(ours)
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
    "kronecker": lambda: EWC(BETA, gamma=0.9, prior_variance=2.0, structure="kronecker", rank=2),
    "kronecker, not online": lambda: EWC(BETA, online=False, structure="kronecker"),
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
        (lambda: EWC(rank=2, online=False, structure="kronecker"), "rank=2 needs online=True"),
        (lambda: EWC(rank=None), "rank=None needs structure='kronecker', got 'diagonal'"),
        (
            lambda: EWC(rank=0, structure="kronecker"),
            "rank must be an integer of at least 1, or None.*got 0",
        ),
        (lambda: EWC(weight_sharing="reduce"), "weight_sharing='reduce' needs structure='kron"),
        (
            lambda: EWC(weight_sharing="sum", structure="kronecker"),
            "weight_sharing must be one of .*'reduce'.*got 'sum'",
        ),
        (lambda: EWC(structure="full"), "structure must be one of .*'kronecker'.*got 'full'"),
        (lambda: EWC(n_fisher=0), "n_fisher must be at least 1, got 0"),
        (lambda: EWC(prior_variance=0), "prior_variance must be positive and finite, got 0"),
    ],
)
def test_illegal_combinations_are_refused(make_regularizer, message):
    with pytest.raises(ValueError, match=message):
        make_regularizer()


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
