"""States of other networks are refused, and the refusal says what differs."""

import io

import pytest
import torch
from torch import nn

from avalanche_hnet import HyperModel, HyperNetwork
from tests.support.hypernets import adapted, hyper_model, values
from tests.support.models import mlp
from tests.support.streams import task_stream


class Branches(nn.Module):
    """Layers of equal sizes, in one order or the other."""

    def __init__(self, *order):
        super().__init__()
        for name in order:
            self.add_module(name, nn.Linear(6, 4))

    def forward(self, x):
        return self.a(x) - self.b(x)


def activated(activation):
    return nn.Sequential(nn.Linear(6, 8), activation(), nn.Linear(8, 2))


def made(target=None, activation=nn.Tanh, **options):
    target = mlp(n_out=2) if target is None else target
    of_model = {n: options.pop(n) for n in ("multi_head", "output_layer") if n in options}
    of_model |= {n: options.pop(n) for n in ("remaining", "mask_value") if n in options}
    hypernet = {"embedding_dim": 3, "hidden": (5, 4), "activation": activation} | options
    return HyperModel(target, HyperNetwork(target, **hypernet), **of_model)


PAIRS = {
    "order": (
        lambda: made(Branches("a", "b")),
        lambda: made(Branches("b", "a")),
        r"generated\[0\] is \['a.weight', \[4, 6\]\] in the state and \['b.weight'",
    ),
    "chunks": (
        lambda: hyper_model(hypernet={"chunk_size": 7}),
        lambda: hyper_model(hypernet={"chunk_size": 8}),
        "chunk_size=7 in the state and 8 in this model",
    ),
    "no chunks": (
        lambda: hyper_model(hypernet={"chunk_size": 7}),
        lambda: hyper_model(),
        "chunk_size=7 in the state and 74 in this model",
    ),
    "heads": (
        lambda: made(mlp(n_out=4), multi_head=True),
        lambda: made(mlp(n_out=4)),
        "multi_head=True in the state and False in this model",
    ),
    "no heads": (
        lambda: made(mlp(n_out=4)),
        lambda: made(mlp(n_out=4), multi_head=True),
        "multi_head=False in the state and True in this model",
    ),
    "output layer": (
        lambda: made(Branches("a", "b"), multi_head=True, output_layer="a"),
        lambda: made(Branches("a", "b"), multi_head=True, output_layer="b"),
        "output_layer='a' in the state and 'b' in this model",
    ),
    "mask": (
        lambda: made(mlp(n_out=4), multi_head=True, mask_value=-5.0),
        lambda: made(mlp(n_out=4), multi_head=True),
        "mask_value=-5.0 in the state",
    ),
    "remaining": (
        lambda: made(generate="2.*", remaining="shared"),
        lambda: made(generate="2.*", remaining="frozen"),
        "remaining='shared' in the state and 'frozen' in this model",
    ),
    "generated": (
        lambda: made(generate="2.*"),
        lambda: made(generate="0.*"),
        r"generated\[0\] is \['2.weight'.*; not_generated\[0\] is \['0.weight'",
    ),
    "activation": (
        lambda: made(activated(nn.ReLU)),
        lambda: made(activated(nn.Tanh)),
        r"layers\[2\] is \['1', 'ReLU'\] in the state and \['1', 'Tanh'\] in this model",
    ),
    "activation of the hypernetwork": (
        lambda: made(activation=nn.ReLU),
        lambda: made(activation=nn.Tanh),
        r"hypernetwork_layers\[2\] is \['1', 'ReLU'\]",
    ),
    "width": (
        lambda: made(hidden=(5, 4)),
        lambda: made(hidden=(6, 4)),
        r"hypernetwork\[0\] is \['trunk.0.weight', \[5, 3\]\]",
    ),
    "depth": (
        lambda: made(hidden=(4,)),
        lambda: made(hidden=(4, 4)),
        r"hypernetwork\[2\] is \['output.weight'.* and \['trunk.2.weight'",
    ),
    "embedding": (lambda: made(embedding_dim=4), lambda: made(), "embedding_dim=4 in the state"),
}


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def extra(state):
    return state["_extra_state"]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("pair", PAIRS)
def test_another_network_is_refused_and_nothing_changes(pair, strict):
    saved, other, message = PAIRS[pair]
    saved, other = saved(), other()
    adapted(saved, task_stream(2, offset=saved.multi_head).train_stream)
    before = values(other)
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(through_a_file(saved.state_dict()), strict=strict)
    assert other.task_labels == ()
    assert values(other).keys() == before.keys()
    assert all(torch.equal(t, before[n]) for n, t in values(other).items())


@pytest.mark.parametrize("pair", PAIRS)
def test_the_same_network_is_loaded(pair):
    make = PAIRS[pair][0]
    saved, same = make(), make()
    adapted(saved, task_stream(2, offset=saved.multi_head).train_stream)
    same.load_state_dict(through_a_file(saved.state_dict()))
    assert same.state_dict()["_extra_state"] == saved.state_dict()["_extra_state"]
    x = torch.randn(4, 6)
    assert torch.equal(same.eval()(x, 1), saved.eval()(x, 1))


def test_older_states_load_with_a_warning():
    saved = adapted(made(), task_stream(2).train_stream)
    state = saved.state_dict()
    del extra(state)["network"]
    same = made()
    with pytest.warns(UserWarning, match="does not say of which network it is"):
        same.load_state_dict(state)
    assert same.task_labels == (0, 1)


def test_older_states_with_units_need_heads():
    saved = adapted(made(mlp(n_out=4), multi_head=True), task_stream(2, offset=True).train_stream)
    state = saved.state_dict()
    del extra(state)["network"]
    with pytest.raises(ValueError, match="a model with multi_head=True, but this one has not"):
        made(mlp(n_out=4)).load_state_dict(state)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"tasks": [0, 0]}, "'tasks' of the state must be different task labels"),
        ({"tasks": ["0", "1"]}, "'tasks' of the state"),
        ({"trained": [5]}, "'trained' of the state must be some of its 'tasks'"),
        ({"has_trained": 1}, "'has_trained' of the state must be a bool"),
        ({"units": [[0]]}, "'units' of the state must be pairs"),
        ({"max_class_label": "2"}, "'max_class_label' of the state must be an integer"),
        ({"network": {}}, r"state\['network'\] must have the keys"),
        ({"network": 3}, r"state\['network'\] must have the keys .* got int"),
    ],
)
def test_entries_of_another_kind_are_named(entries, message):
    state = adapted(made(), task_stream(2).train_stream).state_dict()
    extra(state).update(entries)
    model = made()
    with pytest.raises(ValueError, match=message):
        model.load_state_dict(state)
    assert model.task_labels == ()


@pytest.mark.parametrize("key", ["tasks", "trained", "has_trained", "units", "max_class_label"])
def test_missing_entries_are_named(key):
    state = adapted(made(), task_stream(2).train_stream).state_dict()
    del extra(state)[key]
    with pytest.raises(ValueError, match=f"must have the keys .*'{key}'"):
        made().load_state_dict(state)
