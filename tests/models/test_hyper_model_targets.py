"""Any module can be a target, and stays unchanged."""

import copy
import pickle

import pytest
import torch

from avalanche_hnet import FixedTarget
from tests.support.hypernets import adapted, hyper_model, learner, run_target
from tests.support.models import TiedWeights
from tests.support.streams import tensors
from tests.support.targets import TARGETS, stream_for


@pytest.mark.parametrize("name", TARGETS)
def test_any_target_is_trained_on_two_experiences_and_left_untouched(name):
    make, shape = TARGETS[name]
    benchmark, target = stream_for(shape), make()
    state, attributes = copy.deepcopy(target.state_dict()), set(vars(target))
    n_weights = sum(p.numel() for p in target.parameters())
    model = hyper_model(target, hypernet={"chunk_size": -(-n_weights // 8)})
    assert model.hypernetwork.layout.n_weights == n_weights
    strategy = learner(model, FixedTarget(), lr=0.001, train_mb_size=3)
    for experience in benchmark.train_stream:
        before = model.hypernetwork(0).detach() if model.task_labels else None
        strategy.train(experience)
    assert not torch.equal(model.hypernetwork(0), before)
    strategy.eval(benchmark.test_stream)

    x, _, _ = tensors(benchmark.train_stream[0])
    model.eval()
    outputs = model(x, 0)
    assert outputs.isfinite().all()
    torch.testing.assert_close(model.main_network(0).eval()(x), outputs)
    with_statistics = ("batch norm", "two names", "resnet18")  # of their own now
    if name not in with_statistics:
        torch.testing.assert_close(run_target(target.eval(), model, 0, x), outputs)

    torch.testing.assert_close(copy.deepcopy(model)(x, 0), outputs)
    if name != "weight_norm":  # which PyTorch does not pickle
        torch.testing.assert_close(pickle.loads(pickle.dumps(model))(x, 0), outputs)

    assert set(vars(target)) == attributes
    assert all(p.requires_grad and p.grad is None for p in target.parameters())
    torch.testing.assert_close(target.state_dict(), state, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["lstm", "tied weights", "two names", "transformer"])
def test_no_weights_stay_behind_in_the_target(name):
    """Nothing of a forward pass is kept, and no task sees the weights of another."""
    make, shape = TARGETS[name]
    stream = stream_for(shape).train_stream
    model = adapted(hyper_model(make(), hypernet={"chunk_size": 50}), stream).eval()
    x = tensors(stream[0])[0]
    first = model(x, 0)
    model(x, 1)
    torch.testing.assert_close(model(x, 0), first)
    assert all(p is None for m in model.target.modules() for p in m._parameters.values())
    kept = [
        t
        for m in model.target.modules()
        for value in vars(m).values()
        for t in (value if isinstance(value, list) else [value])
        if isinstance(t, torch.Tensor)
    ]
    assert not kept


def test_tied_weights_are_generated_once_and_stay_tied():
    model = adapted(hyper_model(TiedWeights()), stream_for(None).train_stream)
    assert set(model.hypernetwork.layout.shapes) == {"encoder.weight"}
    network = model.main_network(1)
    assert network.decoder.weight is network.encoder.weight
