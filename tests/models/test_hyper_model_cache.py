"""Cached weights are not generated twice, and never stale."""

import pytest
import torch
from torch import nn

from tests.support.hypernets import adapted, hyper_model, learner, run_target
from tests.support.models import mlp
from tests.support.streams import task_stream


def generations(model):
    calls = []
    model.hypernetwork.output.register_forward_hook(lambda *_: calls.append(1))
    original = model.hypernetwork.forward

    def forward(tasks):
        calls.append(tasks)
        return original(tasks)

    model.hypernetwork.forward = forward
    return calls


@torch.no_grad()
def test_weights_are_generated_once_per_group_of_tasks_in_evaluation():
    model, x = adapted(hyper_model(), task_stream(2).train_stream).eval(), torch.randn(3, 6)
    calls = generations(model)
    for label in (0, 1, 0, 1):
        model(x, label)
    assert len(calls) == 2
    for _ in range(2):
        model(x, torch.tensor([0, 1, 0]))
    assert len(calls) == 3


CHANGES = {
    "data": lambda model: model.hypernetwork.output.weight.data.mul_(2),
    "one element": lambda model: model.hypernetwork.trunk[0].bias.data[0].add_(1),
    "embedding": lambda model: model.hypernetwork.embeddings[0].data.add_(1),
    "assignment": lambda model: setattr(
        model.hypernetwork.output, "bias", nn.Parameter(torch.ones(model.hypernetwork.chunk_size))
    ),
    "load_state_dict": lambda model: model.load_state_dict(
        {
            n: t + 1 if isinstance(t, torch.Tensor) and t.is_floating_point() else t
            for n, t in model.state_dict().items()
        }
    ),
    "initialisation": lambda model: nn.init.normal_(model.hypernetwork.trunk[0].weight),
    "numpy": lambda model: model.hypernetwork.output.bias.detach().numpy().__iadd__(1),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_cached_weights_are_never_stale(change):
    target, x = mlp(n_out=2), torch.randn(3, 6)
    model = adapted(hyper_model(target), task_stream(2).train_stream).eval()
    before = model(x, 0)
    CHANGES[change](model)
    outputs = model(x, 0)
    torch.testing.assert_close(outputs, run_target(target, model, 0, x))
    assert not torch.allclose(outputs, before)


@torch.no_grad()
def test_cached_weights_follow_the_type():
    model, x = adapted(hyper_model(), task_stream(2).train_stream).eval(), torch.randn(3, 6)
    before = model(x, 0)
    outputs = model.double()(x.double(), 0)
    assert outputs.dtype == torch.float64
    torch.testing.assert_close(outputs.float(), before)


def test_training_between_evaluations():
    benchmark, x = task_stream(2), torch.randn(3, 6)
    target = mlp(n_out=2)
    model = hyper_model(target)
    strategy, seen = learner(model), []
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
        with torch.no_grad():
            seen.append(model.eval()(x, 0))
            torch.testing.assert_close(seen[-1], run_target(target, model, 0, x))
    assert not torch.allclose(*seen)


def test_gradients_reach_the_hypernetwork_in_evaluation_mode():
    model, x = adapted(hyper_model(), task_stream(2).train_stream).eval(), torch.randn(3, 6)
    with torch.no_grad():
        model(x, 0)
    model(x, 0).square().sum().backward()
    for name, parameter in model.named_parameters():
        if name == "hypernetwork.embeddings.1":
            assert parameter.grad is None
        else:
            assert parameter.grad.abs().sum() > 0, name


@torch.no_grad()
def test_weights_are_not_kept_while_training():
    model = hyper_model(hypernet={"dropout": 0.5, "hidden": (40, 40)})
    x = torch.randn(3, 6)
    adapted(model, task_stream(1).train_stream).eval()
    kept = model(x, 0)
    model.train()
    first, second = model(x, 0), model(x, 0)
    assert not torch.allclose(first, kept)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(model.eval()(x, 0), kept)


@torch.no_grad()
def test_weights_are_not_kept_under_autocast():
    model, x = adapted(hyper_model(), task_stream(1).train_stream).eval(), torch.randn(3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        model(x, 0)
    assert model(x, 0).dtype == torch.float32
    torch.testing.assert_close(model(x, 0), model.main_network(0)(x))
