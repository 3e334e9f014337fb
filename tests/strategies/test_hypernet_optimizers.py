"""Hypernetworks are trained by any optimizer."""

import pytest
import torch
from avalanche.training.plugins import LRSchedulerPlugin, SupervisedPlugin

from avalanche_hnet import FixedTarget
from tests.support.hypernet_strategies import CHUNKS, PREFIX, model_weights, trained
from tests.support.hypernets import hyper_model, learner, values
from tests.support.strategies import Recorder
from tests.support.streams import task_stream


class FirstSteps(SupervisedPlugin):
    """Weights before and after the first iteration of each experience."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def before_update(self, strategy, **kwargs):
        if strategy.clock.train_exp_iterations == 0:
            self.steps.append(values(strategy.model))

    def after_update(self, strategy, **kwargs):
        if strategy.clock.train_exp_iterations == 0:
            after = values(strategy.model)
            before = self.steps.pop()
            self.steps.append({n: after[n] - before[n] for n in after if n in before})


def test_embeddings_get_a_fresh_optimizer_in_each_experience():
    """Adam's first step is its learning rate. θ's goes on, as Avalanche's optimizers do."""
    steps = FirstSteps()
    trained(
        task_stream(task_labels=[0, 1, 0]).train_stream,
        FixedTarget(),
        steps,
        optimizer=lambda p: torch.optim.Adam(p, 0.01, eps=1e-12),
    )
    for first, task in zip(steps.steps, (0, 1, 0), strict=True):
        own = first[f"{PREFIX}embeddings.{task}"].abs()
        torch.testing.assert_close(own, torch.full_like(own, 0.01), rtol=1e-3, atol=0)
    theta = [step[f"{PREFIX}trunk.0.bias"].abs() for step in steps.steps]
    torch.testing.assert_close(theta[0], torch.full_like(theta[0], 0.01), rtol=1e-3, atol=0)
    assert not torch.allclose(theta[1], torch.full_like(theta[1], 0.01), rtol=1e-2, atol=0)


@pytest.mark.parametrize("make", [None, lambda p: torch.optim.SGD(p, 0.05)])
def test_embeddings_follow_the_scheduler_unless_their_optimizer_is_given(make):
    def frozen(optimizer):
        return torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)

    torch.manual_seed(0)
    model, recorder = hyper_model(), Recorder()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    strategy = learner(
        model,
        None,
        LRSchedulerPlugin(frozen(optimizer)),
        recorder,
        optimizer=optimizer,
        embedding_optimizer=make,
    )
    strategy.train(task_stream(1).train_stream[0])  # the second epoch from iteration 4
    for name in ("embeddings.0", "output.bias"):
        moves = [
            not torch.equal(a[PREFIX + name], b[PREFIX + name])
            for a, b in zip(recorder.weights[3:], recorder.weights[4:], strict=False)
        ]
        assert all(moves) if make and name == "embeddings.0" else not any(moves)


DENSE = {
    "ASGD": {},
    "Adadelta": {},
    "Adafactor": {},
    "Adagrad": {},
    "Adam": {"amsgrad": True},
    "AdamW": {},
    "Adamax": {},
    "NAdam": {},
    "RAdam": {},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Rprop": {},
    "SGD": {"momentum": 0.9, "nesterov": True},
}


def test_all_optimizers_with_dense_gradients_are_tested():
    classes = {
        name
        for name, cls in vars(torch.optim).items()
        if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
    }
    assert classes - {"Optimizer", "SparseAdam", "LBFGS", "Muon"} <= DENSE.keys()


@pytest.mark.parametrize("name", [n for n in DENSE if hasattr(torch.optim, n)])
@pytest.mark.parametrize("train_previous", [False, True])
def test_every_optimizer_trains(name, train_previous):
    make, options = getattr(torch.optim, name), DENSE[name]
    regularizer = FixedTarget(train_previous_embeddings=train_previous)
    _, weights = trained(
        task_stream(2).train_stream, regularizer, optimizer=lambda p: make(p, lr=0.01, **options)
    )
    for before, after, task in zip(
        [model_weights(hyper_model), *weights], weights, (0, 1), strict=False
    ):
        for parameter in before:
            if "embeddings" not in parameter or parameter.endswith(str(task)):
                assert after[parameter].isfinite().all()
                assert not torch.equal(after[parameter], before[parameter]), parameter


class CountsFromTheStart(torch.optim.SGD):
    """Its constructor gives each parameter a state, as Adagrad's did before it was made lazy."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["count"] = torch.zeros(())

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["count"] += 1
        return super().step(closure)


@pytest.mark.parametrize("reset", [False, True])
def test_optimizers_whose_constructor_makes_a_state(reset):
    """Avalanche gives new parameters an empty one."""
    model, made = hyper_model(), []
    optimizer = CountsFromTheStart(model.parameters(), 0.01)
    strategy = learner(model, FixedTarget(train_previous_embeddings=True), optimizer=optimizer)
    for experience in task_stream(3).train_stream:
        strategy.train(experience, reset_optimizer_state=reset)
        made.append({n: int(optimizer.state[p]["count"]) for n, p in named(optimizer, model)})
    net = "hypernetwork."
    assert made[2][f"{net}output.bias"] == (8 if reset else 24)
    assert made[2][f"{net}embeddings.0"] == (8 if reset else 16)
    assert made[2][f"{net}embeddings.1"] == 8
    assert f"{net}embeddings.2" not in made[2]


def named(optimizer, model):
    present = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [(n, p) for n, p in model.named_parameters() if id(p) in present]


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {"maximize": True}])
def test_every_implementation_of_an_optimizer_trains(options):
    trained(
        task_stream(2).train_stream,
        FixedTarget(),
        optimizer=lambda p: torch.optim.Adam(p, 0.01, **options),
    )


def test_optimizers_that_cannot_be_used_say_so():
    experience = task_stream(1).train_stream[0]
    model = hyper_model()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    strategy = learner(model, FixedTarget(), optimizer=torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ValueError, match="LBFGS needs a closure"):
        strategy.train(experience)
    for name, weight in before.items():
        assert torch.equal(model.get_parameter(name), weight)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="not in this PyTorch")
def test_an_optimizer_that_embeddings_do_not_fit_asks_for_another():
    model = hyper_model()
    optimizer = torch.optim.Muon([p for p in model.parameters() if p.dim() == 2])
    message = "another optimizer like the given Muon.*pass an optimizer for the embeddings"
    with pytest.raises(ValueError, match=message):
        learner(model, FixedTarget(), optimizer=optimizer)


def test_groups_of_parameters_keep_their_options():
    torch.manual_seed(0)
    model = hyper_model()
    net = model.hypernetwork
    groups = [
        {"params": net.trunk.parameters(), "lr": 0.0},
        {"params": net.output.parameters(), "lr": 0.1},
    ]
    trunk, output = net.trunk[0].weight.clone(), net.output.weight.clone()
    strategy = learner(model, FixedTarget(), optimizer=torch.optim.SGD(groups))
    for experience in task_stream(2).train_stream:
        strategy.train(experience)
    assert torch.equal(net.trunk[0].weight, trunk)
    assert not torch.equal(net.output.weight, output)


def test_previous_embeddings_are_trained_with_several_groups_of_parameters():
    model = hyper_model()
    net = model.hypernetwork
    groups = [{"params": net.trunk.parameters()}, {"params": net.output.parameters(), "lr": 0.2}]
    regularizer = FixedTarget(train_previous_embeddings=True)
    strategy = learner(model, regularizer, optimizer=torch.optim.SGD(groups, 0.1))
    for experience in task_stream(2).train_stream:
        strategy.train(experience)


class Layouts(SupervisedPlugin):
    """Notes whether all gradients are laid out in memory like their parameters."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def before_update(self, strategy, **kwargs):
        parameters = [p for p in strategy.model.parameters() if p.grad is not None]
        self.seen.append(all(p.grad.stride() == p.stride() for p in parameters))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("form", ["direct", "quadratic"])
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_fused_optimizers_take_the_same_steps(form, optimizer):
    # Fused kernels read memory in order, whatever the layout: all of a parameter must have one.
    found, layouts = [], Layouts()
    for fused in (False, True):
        torch.manual_seed(3)
        model = hyper_model(hypernet=CHUNKS)
        strategy = learner(
            model,
            FixedTarget(0.1, form=form),
            layouts,
            optimizer=optimizer(model.parameters(), 0.01, fused=fused),
        )
        for experience in task_stream(3).train_stream:
            strategy.train(experience)
        found.append(values(model))
    assert layouts.seen
    assert all(layouts.seen)
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)
