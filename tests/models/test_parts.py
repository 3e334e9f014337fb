"""What adaptation to unknown tasks and classes makes of a model can be taken back."""

import pytest
import torch
from avalanche.models import IncrementalClassifier, MultiHeadClassifier
from avalanche.models.pnn import PNN
from torch import nn

from avalanche_hnet import BlockMultiHeadClassifier
from avalanche_hnet.models.parts import Parts
from tests.support.hypernets import hyper_model
from tests.support.models import Incremental, MultiHead, mlp
from tests.support.streams import adapt, task_stream

MODELS = {
    "heads": lambda: MultiHead(MultiHeadClassifier(8)),
    "unmasked heads": lambda: MultiHead(MultiHeadClassifier(8, masking=False)),
    "blocks": lambda: MultiHead(BlockMultiHeadClassifier(8)),
    "incremental": Incremental,
    "incremental inside": lambda: nn.ModuleList([nn.ModuleList([IncrementalClassifier(8)])]),
    "columns": lambda: PNN(in_features=6, hidden_features_per_column=4),
    "hypernetwork": hyper_model,
    "hypernetwork, units": lambda: hyper_model(mlp(n_out=9), multi_head=True),
    "hypernetwork, statistics": lambda: hyper_model(
        nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    ),
}


def described(model):
    """Whatever a model shows of itself."""
    state = {
        n: (id(t), getattr(t, "shape", t)) for n, t in model.state_dict(keep_vars=True).items()
    }
    plain = {
        name: {k: repr(v) for k, v in vars(m).items() if not isinstance(v, nn.Module)}
        for name, m in model.named_modules()
    }
    for attributes in plain.values():
        for name in ("_parameters", "_buffers", "_modules"):
            attributes.pop(name)
    tasks = model.tasks.state_dict() if hasattr(model, "tasks") else None
    state.pop("_extra_state", None)
    return state, str(model), plain, tasks, [id(p) for p in model.parameters()]


@pytest.mark.parametrize("trained", [0, 1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_what_it_was(name, trained):
    model, stream = MODELS[name](), task_stream(4, offset=True).train_stream
    for experience in stream[:trained]:
        adapt(model, experience)
    model.eval()
    before = described(model)
    parts = Parts(model)
    for experience in stream[::-1]:
        adapt(model, experience, training=False)
    assert described(model) != before
    parts.restore()
    assert described(model) == before
    for experience in stream[trained:]:  # and can go on
        adapt(model, experience)


class Counting(nn.Module):
    """Not dynamic, so what it notes is its own business."""

    def __init__(self):
        super().__init__()
        self.n_calls, self.seen = 0, []

    def forward(self, x):
        self.n_calls += 1
        self.seen.append(len(x))
        return x


def test_other_modules_are_left_alone():
    model = nn.Sequential(Counting(), IncrementalClassifier(8))
    parts = Parts(model)
    model(torch.zeros(3, 8))
    parts.restore()
    assert model[0].n_calls == 1
    assert model[0].seen == [3]


def test_lazy_layers_keep_the_shape_that_they_have_taken():
    model = MultiHead()
    model.features = nn.Sequential(nn.LazyLinear(8))
    parts = Parts(model)
    model.eval()
    expected = model(torch.ones(2, 6), 0)
    parts.restore()
    assert model.features[0].in_features == 6
    assert torch.equal(model(torch.ones(2, 6), 0), expected)
    hook = model.features[0].register_forward_hook(lambda *_: None)
    parts.restore()  # hooks are no parts
    assert len(model.features[0]._forward_hooks) == 1
    hook.remove()


def test_buffers_that_change_in_place_get_their_values_back():
    model = nn.Sequential(nn.BatchNorm1d(8), IncrementalClassifier(8))
    model[1].norm = nn.BatchNorm1d(8)
    parts, mask = Parts(model), model[1].active_units
    mask.fill_(1)
    model[1].active_units = torch.ones(5)
    model[1].norm(torch.randn(4, 8))
    model[0](torch.randn(4, 8))
    parts.restore()
    assert model[1].active_units is mask
    assert not mask.any()
    assert not model[1].norm.running_mean.any()
    assert model[0].running_mean.any()  # of no dynamic module
