"""Main networks that run again in part in the backward pass train as those that do not."""

import copy
import gc
import pickle
import weakref
from functools import cached_property

import pytest
import torch
from torch import nn
from torch.func import functional_call

from avalanche_hnet.models.checkpoints import may_checkpoint
from avalanche_hnet.models.network_views import _View
from tests.support import checkpointed as targets
from tests.support.hypernets import adapted, hyper_model
from tests.support.streams import task_stream

EACH = pytest.mark.parametrize("target", targets.SAME_WITHOUT)


def model_of(target, n_tasks=2, *args, **options):
    torch.manual_seed(0)
    model = hyper_model(target(*args), **options).double()
    return adapted(model, task_stream(n_tasks).train_stream)


def inputs(n=4):
    return torch.randn(n, 6, dtype=torch.double, generator=torch.Generator().manual_seed(1))


def gradients(outputs, model, **options):
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = outputs.square().sum()
    return torch.autograd.grad(loss, parameters, allow_unused=True, **options)


def plain_outputs(model, target, label, x):
    """By the functional call of a network that has no checkpoints."""
    network = target(False).double().train(model.training)
    flat = model.hypernetwork(model.task_number(label))[0]
    weights = dict(model.target.named_parameters()) | model.hypernetwork.layout.views(flat)
    first = {id(p): n for n, p in network.named_parameters()}
    names = network.named_parameters(remove_duplicate=False)
    torch.manual_seed(3)
    tied = {name: weights[first[id(p)]] for name, p in names}
    return functional_call(network, tied, (x,), tie_weights=False)


def assert_same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


def outputs_of(model, x, labels):
    torch.manual_seed(3)
    return model(x, labels)


@EACH
@pytest.mark.parametrize("generate", ["*", "*bias*"])
def test_values_and_gradients(target, generate):
    model = model_of(target, hypernet={"generate": generate})
    x = inputs()
    found = outputs_of(model, x, 1)
    expected = plain_outputs(model, target, 1, x)
    assert torch.equal(found, expected)
    assert_same(gradients(found, model), gradients(expected, model))


@EACH
def test_the_plain_network_is_another_without_checkpoints(target):
    """The oracle above compares with what runs nothing again."""
    calls = []
    for on in (True, False):
        network = target(on)
        counts = [0]
        for module in network.modules():
            module.register_forward_pre_hook(lambda *_, counts=counts: counts.append(1))
        outputs = network(torch.randn(4, 6))
        before = len(counts)
        outputs.sum().backward()
        calls.append(len(counts) - before)
    assert calls[0] > 0 == calls[1]


@pytest.mark.parametrize("target", [targets.TwoBlocks, targets.Whole, targets.Recurrent])
def test_several_runs_in_one_loss(target):
    """Backward passes in whatever order find the weights of their own runs."""
    model, x = model_of(target, 3), inputs(6)
    labels = torch.tensor([0, 2, 1, 1, 0, 2])
    mixed = outputs_of(model, x, labels)
    alone = torch.cat(
        [plain_outputs(model, target, int(t), x[i : i + 1]) for i, t in enumerate(labels)]
    )
    torch.testing.assert_close(mixed, alone, rtol=1e-12, atol=1e-12)
    for found, expected in zip(gradients(mixed, model), gradients(alone, model), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    runs = [outputs_of(model, x, t) for t in (0, 1, 2)]
    for t in (1, 2, 0):
        assert_same(gradients(runs[t], model), gradients(plain_outputs(model, target, t, x), model))


@EACH
def test_gradients_of_gradients(target):
    """A penalty of the inputs' gradient, which passes the outputs by."""
    if target is targets.WithOptions:
        pytest.skip("what selective checkpoints keep is for one backward pass")
    model, x = model_of(target), inputs().requires_grad_()

    def penalty(outputs):
        (slope,) = torch.autograd.grad(outputs.sum(), x, create_graph=True)
        return slope

    found = penalty(outputs_of(model, x, 0))
    expected = penalty(plain_outputs(model, target, 0, x))
    assert torch.equal(found, expected)
    for a, b in zip(gradients(found, model), gradients(expected, model), strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, rtol=1e-10, atol=1e-13)


def test_a_graph_that_is_kept():
    model = model_of(targets.TwoBlocks)
    outputs = model(inputs(), 0)
    first = gradients(outputs, model, retain_graph=True)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    model(inputs(), 1)
    assert_same(gradients(outputs, model), first)


@pytest.mark.parametrize("remaining", ["shared", "per_task", "frozen"])
@pytest.mark.parametrize("target", [targets.TwoBlocks, targets.ByParent, targets.Normalized])
def test_remaining_parameters_and_statistics(target, remaining):
    """As PyTorch trains a network of its own, whose statistics take in a batch twice."""
    model = model_of(target, hypernet={"generate": ["*2.bias", "first*"]}, remaining=remaining)
    x = inputs()
    for label in (0, 1):
        network = model.main_network(label)
        layout = model.hypernetwork.layout
        flat = model.hypernetwork(label)[0].detach().requires_grad_()
        found = model(x, label, {label: flat})
        found.square().sum().backward()
        expected = network(x)
        expected.square().sum().backward()
        assert torch.equal(found, expected)
        views = layout.views(flat.grad)
        own = model.target if not len(model.networks) else model.networks[str(label)]
        for name, parameter in network.named_parameters():
            if name in views:
                assert torch.equal(views[name], parameter.grad)
            elif remaining != "frozen":
                holder = own if remaining == "per_task" else model.target
                assert torch.equal(holder.get_parameter(name).grad, parameter.grad)
        for name, buffer in network.named_buffers():
            assert torch.equal(own.get_buffer(name), buffer)
        model.zero_grad()


def test_a_wrapped_module():
    model = model_of(targets.Wrapped)
    plain = model_of(targets.Wrapped, 2, False)
    plain.hypernetwork.load_state_dict(model.hypernetwork.state_dict())
    found, expected = model(inputs(), 1), plain(inputs(), 1)
    assert torch.equal(found, expected)
    assert_same(gradients(found, model), gradients(expected, plain))


def test_state_is_the_networks_own():
    model = model_of(targets.Stateful)
    network = model.networks["1"]
    model(inputs(), 1).sum().backward()
    assert (network.n_calls, network.seen) == (1, 1)
    assert network.latest is network.block
    assert not any(isinstance(m, _View) for m in model.modules())


@pytest.mark.parametrize("target", [targets.TwoBlocks, targets.Recurrent, targets.Stateful])
@pytest.mark.parametrize("backward", [True, False])
def test_nothing_stays_behind(target, backward):
    """Without garbage collection, as memory would run out before it."""
    model, x = model_of(target), inputs()
    keys = list(model.state_dict())
    gc.collect()
    gc.disable()
    try:
        weights = model.generate([0])
        outputs = model(x, 0, weights)
        kept = weakref.ref(weights[0])
        if backward:
            outputs.sum().backward()
        copy.deepcopy(model)
        pickle.dumps(model)
        assert list(model.state_dict()) == keys
        del outputs, weights
        assert kept() is None
        assert not [o for o in gc.get_objects() if issubclass(type(o), _View)]
    finally:
        gc.enable()


def test_an_error_in_the_backward_pass_leaves_the_network_as_it_was():
    class Failing(targets.Target):
        def middle(self, h):
            return self.again(self.fail_once, h)

        def fail_once(self, h):
            if self.fails:
                raise ArithmeticError
            return self.block(h)

    model = model_of(Failing)
    model.target.fails = False
    outputs = model(inputs(), 0)
    model.target.fails = True
    with pytest.raises(ArithmeticError):
        outputs.sum().backward()
    model.target.fails = False
    found, expected = model(inputs(), 1), plain_outputs(model, targets.Target, 1, inputs())
    assert_same(gradients(found, model), gradients(expected, model))


class Keeping(targets.Target):
    """Keeps modules where they are found in the first call."""

    @cached_property
    def blocks(self):
        return [self.block]

    def middle(self, h):
        return self.again(self.blocks[0], h) @ self.blocks[0][0].weight


def test_modules_that_a_call_keeps_are_refused_in_the_next():
    """They have weights that may be another task's."""
    model, x = model_of(Keeping), inputs()
    found, expected = model(x, 0), plain_outputs(model, Keeping, 0, x)
    assert_same(gradients(found, model), gradients(expected, model))
    for mode in (torch.enable_grad(), torch.no_grad()):
        with mode, pytest.raises(RuntimeError, match="kept by an earlier call"):
            model(x, 1)
    for network in (copy.deepcopy(model.target), pickle.loads(pickle.dumps(model.target))):
        assert network.blocks[0] is network.block


@pytest.mark.parametrize("training", [True, False])
def test_tasks_side_by_side(training):
    model = model_of(targets.TwoBlocks, 3).train(training)
    found = model.forward_tasks(inputs(), [2, 0])
    expected = torch.stack([plain_outputs(model, targets.TwoBlocks, t, inputs()) for t in (2, 0)])
    torch.testing.assert_close(found, expected)
    for a, b in zip(gradients(found, model), gradients(expected, model), strict=True):
        torch.testing.assert_close(a, b)


class InAnObject(targets.Target):
    """Whose part that runs again is no attribute of a module."""

    def __init__(self, *args):
        super().__init__(*args)
        self.blocks = [self.block]

    def middle(self, h):
        return self.again(self.blocks[0], h)


@pytest.mark.parametrize("generate", ["*", "*bias"])
@pytest.mark.parametrize("target", [targets.Target, targets.Whole, targets.Normalized])
def test_reentrant_checkpoints_are_refused(target, generate):
    model = model_of(target, 2, True, True, hypernet={"generate": generate})
    outputs = model(inputs().requires_grad_(), 0)
    with pytest.raises(RuntimeError, match="pass use_reentrant=False"):
        outputs.sum().backward()


@pytest.mark.parametrize("remaining", ["shared", "per_task"])
def test_reentrant_checkpoints_of_what_is_not_generated(remaining):
    def gradients_of(*args):
        options = {"hypernet": {"generate": "last*"}, "remaining": remaining}
        model = model_of(targets.Target, 2, *args, **options)
        model(inputs(), 1).square().sum().backward()
        return [p.grad for p in model.parameters()]

    assert_same(gradients_of(True, True), gradients_of(False))


def test_hooks_find_their_layers():
    model, found = model_of(targets.TwoBlocks), {}
    layers = [m for m in model.target.modules() if isinstance(m, nn.Linear)]
    for layer in layers:
        layer.register_forward_hook(lambda m, x, y: found.update({m: type(m).forward}))
    model(inputs(), 0)
    assert set(found) == set(layers)
    assert {*found.values()} == {nn.Linear.forward}
    for view in found:
        assert sum(layer == view and view == layer for layer in layers) == 1


def test_what_has_no_view_is_refused():
    model = model_of(InAnObject)
    outputs = model(inputs(), 0)
    with pytest.raises(RuntimeError, match="modules that are attributes"):
        outputs.sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(model(inputs(), 0), outputs)


def test_which_networks_are_looked_at():
    assert all(may_checkpoint(target()) for target in targets.SAME_WITHOUT)
    assert may_checkpoint(nn.Sequential(targets.Wrapped().block))
    assert not may_checkpoint(nn.TransformerEncoderLayer(4, 2))


def test_frozen_features_in_a_checkpoint_run_again_without_gradients():
    class Frozen(targets.Target):
        def middle(self, h):
            return self.again(self.partly, h)

        def partly(self, h):
            with torch.no_grad():
                features = self.block(h)
            return features * self.last.bias.sum() * h

    model = model_of(Frozen)
    found, expected = model(inputs(), 0), plain_outputs(model, Frozen, 0, inputs())
    assert_same(gradients(found, model), gradients(expected, model))
