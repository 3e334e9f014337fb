"""A hypernetwork that is frozen after its first experience, with every regulariser."""

import pytest
import torch

from avalanche_hnet import EWC, FixedTarget, Jacobian, ValuePreserving
from tests.support.hypernets import hyper_model, learner
from tests.support.streams import task_stream

REGULARIZERS = [
    lambda: None,
    lambda: FixedTarget(),
    lambda: FixedTarget(targets="recomputed"),
    lambda: FixedTarget(train_previous_embeddings=True),
    lambda: FixedTarget(lookahead="sgd", differentiable_lookahead=True),
    lambda: ValuePreserving(),
    lambda: Jacobian(),
    lambda: EWC(),
    lambda: EWC(gamma=0.5, n_fisher=5),
    lambda: EWC(online=False),
    lambda: EWC(structure="kronecker", n_fisher=5),
    lambda: EWC(structure="kronecker", online=False),
]


@pytest.mark.parametrize("make", REGULARIZERS)
@pytest.mark.parametrize("options", [{}, {"chunk_size": 13}])
@pytest.mark.parametrize("everything", [True, False])
def test_only_embeddings_are_trained(make, options, everything):
    model = hyper_model(hypernet=options)
    strategy = learner(model, make())
    stream = task_stream(3).train_stream
    strategy.train(stream[0])
    shared = model.hypernetwork.shared_parameters()
    frozen = list(shared) if everything else list(shared)[:2]
    for name in frozen:
        shared[name].requires_grad_(False)
    before = {n: shared[n].detach().clone() for n in frozen}
    for experience in stream[1:]:
        strategy.train(experience)
    for name in frozen:
        assert torch.equal(shared[name], before[name]), name
    assert all(p.isfinite().all() for p in model.parameters())
