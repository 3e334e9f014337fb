import pytest
import torch

from avalanche_hnet import ValuePreserving
from avalanche_hnet.core.regularizers.base import Penalty
from tests.support.hypernetwork_oracles import as_theirs, authors
from tests.support.regularizers import BETA, FORMS, KINDS, assert_penalty, begin, hypernetwork, put

pytestmark = pytest.mark.usefixtures("float64")


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
