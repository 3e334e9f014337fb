import copy
from functools import partial

import pytest
import torch

from avalanche_hnet import TaskInference
from avalanche_hnet.models import network_runner
from tests.support.hypernets import adapted, hyper_model, values
from tests.support.streams import task_stream
from tests.support.targets import TwoNames
from tests.support.task_inference import (
    CLOSE,
    HYPERNETS,
    assert_is,
    by_entropy,
    hypernet,
    inputs,
    loop,
    plain,
)

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("kind", HYPERNETS)
def test_forward_tasks_equals_one_task_at_a_time(kind, mode):
    """In training mode, too, where each task updates its own running statistics."""
    model, benchmark, _ = hypernet(**HYPERNETS[kind])
    x, labels = inputs(benchmark)[:7], [4, 3, 1]
    model.train(mode)
    model.zero_grad()
    other = copy.deepcopy(model)
    expected = [other.forward_single_task(x, label) for label in labels]
    found = model.forward_tasks(x, labels)
    torch.testing.assert_close(found, torch.stack(expected), **CLOSE)
    for buffer, after in zip(model.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(buffer, after, **CLOSE)
    if kind.startswith("per_task") and not mode:
        return  # see below
    found.square().sum().backward()
    torch.stack(expected).square().sum().backward()
    pairs = zip(model.named_parameters(), other.parameters(), strict=True)
    gradients = [(n, p.grad, q.grad) for (n, p), q in pairs]
    assert any(g is not None for _, g, _ in gradients)
    for name, g, h in gradients:
        assert (g is None or not g.any()) == (h is None or not h.any()), name
        if g is not None and h is not None:
            torch.testing.assert_close(g, h, rtol=1e-9, atol=1e-12)


def test_gradients_of_the_parameters_of_each_task():
    model, benchmark, _ = hypernet(**HYPERNETS["per_task, mlp"])
    model.eval().zero_grad()
    model.forward_tasks(inputs(benchmark)[:7], [4, 3]).square().sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if n.startswith("networks.")}
    assert gradients["networks.0.0.bias"].any()  # of task 3, the first
    assert gradients["networks.2.0.bias"].any()
    assert gradients["networks.1.0.bias"] is None or not gradients["networks.1.0.bias"].any()


@pytest.mark.parametrize("budget", [1, 83, 2 * 83, 10**9])
def test_more_tasks_than_run_at_once(budget, monkeypatch):
    monkeypatch.setattr(network_runner, "_GROUP_BUDGET", budget)
    model, benchmark, _ = hypernet("batch norm", labels=(3, 1, 4, 0, 2))
    x, labels = inputs(benchmark)[:4], [4, 2, 0, 3, 1]
    sizes, run = [], model._runner.run_at_once

    def watched(x, numbers, weights):
        sizes.append(len(numbers))
        return run(x, numbers, weights)

    monkeypatch.setattr(model._runner, "run_at_once", watched)
    model.eval()
    expected = torch.stack([model.forward_single_task(x, label) for label in labels])
    torch.testing.assert_close(model.forward_tasks(x, labels), expected, **CLOSE)
    n_weights = model.hypernetwork.layout.n_weights
    size = max(1, min(5, budget // n_weights))
    assert max(sizes) == size
    assert len(sizes) == -(-5 // size)
    expected = loop(x, [0, 1, 2, 3, 4], partial(plain, model), by_entropy)
    assert_is(TaskInference(model), x, expected)


@pytest.mark.parametrize("target", ["batch norm", "two names"])
def test_all_tasks_run_at_once_where_vmap_can(target):
    model, benchmark, _ = hypernet(target)
    calls, before = [], values(model)
    model._run = lambda *_: calls.append(1)
    TaskInference(model.eval())(inputs(benchmark))
    assert not calls
    torch.testing.assert_close(values(model), before)


def test_forward_tasks_refuses_unknown_and_no_tasks():
    model, benchmark, _ = hypernet()
    with pytest.raises(ValueError, match="task label 7 is unknown"):
        model.forward_tasks(inputs(benchmark), [1, 7])
    with pytest.raises(ValueError, match="task_labels must name at least one task, got none"):
        model.forward_tasks(inputs(benchmark), [])


def test_a_module_of_two_names_has_its_own_buffers_afterwards():
    model = adapted(hyper_model(TwoNames()), task_stream(2).train_stream).eval()
    x = torch.randn(3, 6)
    with torch.no_grad():
        model.train()(3 * x, 1)
        model.eval()
        before = values(model)
        found = model.forward_tasks(x, [0, 1])
        torch.testing.assert_close(values(model), before)
        torch.testing.assert_close(found, torch.stack([model(x, 0), model(x, 1)]))
