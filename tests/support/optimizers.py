"""Every optimizer of PyTorch, some of users, and their real steps."""

import inspect

import pytest
import torch
from torch import nn

# All classes that there are, so that those of a future PyTorch are tested, too.
CLASSES = {
    name: cls
    for name, cls in vars(torch.optim).items()
    if inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer)
}
for left_out in ("Optimizer", "LBFGS", "SparseAdam"):  # no step; a closure; sparse gradients
    del CLASSES[left_out]


OPTIONS = {
    "SGD": [
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    ],
    "Adam": [{"amsgrad": True, "betas": (0.5, 0.7), "weight_decay": 0.1}],
    "AdamW": [{"amsgrad": True, "eps": 1e-2}],
    "NAdam": [{"decoupled_weight_decay": True, "weight_decay": 0.1}],
    "RAdam": [{"betas": (0.5, 0.7)}, {"decoupled_weight_decay": True, "weight_decay": 0.1}],
    "RMSprop": [{"momentum": 0.5, "centered": True}, {"momentum": 0.5}],
    "Adagrad": [{"lr_decay": 0.1, "initial_accumulator_value": 0.3}],
    "ASGD": [{"lambd": 0.1, "t0": 1}],
    "Rprop": [{"etas": (0.3, 1.5)}],
    "Muon": [{"nesterov": False}, {"adjust_lr_fn": "match_rms_adamw"}],
}


LR = 0.05


def option_sets(name):
    arguments = inspect.signature(CLASSES[name]).parameters
    yield {}
    yield from OPTIONS.get(name, [])
    if "weight_decay" in arguments:
        yield {"weight_decay": 0.2}
    yield from ({o: True} for o in ("maximize", "foreach", "fused") if o in arguments)


CASES = [
    pytest.param(name, options, id=f"{name}-{options}")
    for name in CLASSES
    for options in option_sets(name)
]


class Halved(torch.optim.Adam):
    """Needs an attribute that its constructor sets."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.factor = 0.5

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            if p.grad is not None:
                p.grad.mul_(self.factor)
        super().step()


class UserOptimizer(torch.optim.Optimizer):
    """Keeps memory in every place there is, and overwrites the gradient."""

    def __init__(self, params, lr, noise=0.0):
        super().__init__(params, {"lr": lr})
        self.noise = noise
        self.previous = {}
        self.all_parameters = [p for group in self.param_groups for p in group["params"]]
        self.inner = Halved(self.all_parameters, lr)
        torch.optim.lr_scheduler.ExponentialLR(self.inner, 0.5)
        self.steps = torch.zeros(())
        self.state["steps"] = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.steps += 1
        self.state["steps"] += 1
        for p in self.all_parameters:
            if p.grad is not None and p.requires_grad and not getattr(p, "frozen", False):
                p.grad.mul_(self.steps).add_(self.previous.get(p, torch.zeros(())))
                self.previous[p] = p.grad.clone()
                self.state[p].setdefault("history", []).append(p.grad.clone())
                p.add_(sum(self.state[p]["history"]), alpha=-self.param_groups[0]["lr"])
                p.add_(torch.randn_like(p), alpha=self.noise)
        self.inner.step()


def parameters():
    """Only matrices, as Muon asks; the last never has a gradient."""
    shapes = [(3, 2), (1, 4), (2, 2)]
    return [nn.Parameter(torch.randn(shape)) for shape in shapes]


def loss_of(params):
    """Differentiable again and again, and with gradients that depend on all parameters."""
    a, b, *_ = params
    return (a.sin().sum() * b.exp().sum() + (a**3).sum() + (b**2).sum()) / 4


def compute_gradients(params):
    for p, g in zip(params, torch.autograd.grad(loss_of(params), params[:2]), strict=False):
        p.grad = g


def train(optimizer, steps):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for _ in range(steps):
        compute_gradients(params)
        optimizer.step()
    compute_gradients(params)
    return params


def real_step(optimizer, params):
    before = [p.detach().clone() for p in params]
    optimizer.step()
    return {p: p.detach() - old for p, old in zip(params, before, strict=True)}


def assert_same(changes, expected, params, tolerance=1e-12):
    assert changes.keys() == set(params)
    for p in params:
        assert changes[p].shape == p.shape
        torch.testing.assert_close(changes[p], expected[p], rtol=0, atol=tolerance)
