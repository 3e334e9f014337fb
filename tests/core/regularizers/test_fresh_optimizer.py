import pytest
import torch

from avalanche_hnet.core.regularizers.lookahead import fresh_optimizer, optimizer_step
from tests.support.optimizers import (
    CASES,
    CLASSES,
    LR,
    UserOptimizer,
    assert_same,
    compute_gradients,
    parameters,
    real_step,
    train,
)

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("error"),
]


def without_params(group):
    return {k: v for k, v in group.items() if k not in ("params", "initial_lr")}


@pytest.mark.parametrize(
    ("name", "options"), [*CASES, ("LBFGS", {"max_iter": 3}), ("SparseAdam", {"eps": 1e-3})]
)
def test_fresh_optimizer(name, options):
    cls = getattr(torch.optim, name)
    optimizer = cls(parameters(), lr=LR, **options)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    if name in CLASSES:
        train(optimizer, 2)
        scheduler.step()
    others = parameters()
    fresh = fresh_optimizer(optimizer, iter(others))
    assert type(fresh) is cls
    assert [id(p) for p in fresh.param_groups[0]["params"]] == [id(p) for p in others]
    lr = optimizer.param_groups[0]["lr"]
    assert lr == (LR / 2 if name in CLASSES else LR)
    assert without_params(fresh.param_groups[0]) == without_params(optimizer.param_groups[0])
    by_hand = cls(others, lr=lr, **options)
    assert trace_state(fresh, others) == trace_state(by_hand, others)
    assert "step" not in vars(fresh)
    if name in CLASSES:
        compute_gradients(others)
        changes = optimizer_step(by_hand)
        assert_same(changes, real_step(fresh, others), others[:2])


def trace_state(optimizer, params):
    return [{k: v.tolist() for k, v in optimizer.state.get(p, {}).items()} for p in params]


def test_fresh_optimizer_of_a_user_s_class():
    class Passing(torch.optim.Adam):
        def __init__(self, parameters, scale, **others):
            super().__init__(parameters, **others)
            self.scale = scale
            self.lr = "stale"

    fresh = fresh_optimizer(Passing(parameters(), 3.0, lr=LR, amsgrad=True), parameters())
    assert (type(fresh), fresh.scale) == (Passing, 3.0)
    assert fresh.param_groups[0]["lr"] == LR
    assert fresh.param_groups[0]["amsgrad"] is True
    fresh = fresh_optimizer(UserOptimizer(parameters(), LR, noise=0.5), parameters())
    assert (fresh.noise, fresh.steps.item(), fresh.previous) == (0.5, 0, {})


def test_fresh_optimizer_that_cannot_be_made():
    class Hidden(torch.optim.SGD):
        def __init__(self, params, secret=1.0):
            super().__init__(params, lr=LR * secret)

    class Strict(torch.optim.SGD):
        def __init__(self, params, **options):
            super().__init__(params, lr=LR, **options)

    with pytest.raises(
        ValueError, match=r"given Hidden: .*\['secret'\] are not known; pass an opt"
    ):
        fresh_optimizer(Hidden(parameters(), 2.0), parameters())
    with pytest.raises(ValueError, match=r"given Strict: .*'lr'; pass an optimizer"):
        fresh_optimizer(Strict(parameters()), parameters())
