import pytest
import torch

from avalanche_hnet import FixedTarget
from avalanche_hnet.core.regularizers.base import Penalty
from tests.support.hypernetwork_oracles import as_theirs, authors
from tests.support.regularizers import (
    BETA,
    FORMS,
    KINDS,
    OWNERS_OF_UNITS,
    Samples,
    assert_penalty,
    begin,
    hypernetwork,
    owners,
    put,
)

pytestmark = pytest.mark.usefixtures("float64")


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
def test_nothing_is_penalised_where_the_experience_begins(form):
    ours, regularizer = hypernetwork(), FixedTarget(BETA, lookahead=None, form=form)
    begin(regularizer, ours)
    penalty = regularizer.penalty(ours.shared_parameters())
    assert penalty.value == 0
    assert not any(g.any() for g in penalty.gradients.values())


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
