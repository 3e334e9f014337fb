import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from avalanche_hnet.core.hypernetworks.weight_layout import WeightLayout
from tests.support import models
from tests.support.hypernetwork_oracles import assert_same, make, target

pytestmark = pytest.mark.usefixtures("float64")


@settings(max_examples=50, deadline=None)
@given(
    # with parameters of no dimension, too
    shapes=st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=5),
    leading=st.lists(st.integers(1, 3), max_size=2),
)
def test_views_are_the_inverse_of_flatten(shapes, leading):
    module = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in shapes])
    layout = WeightLayout(module)
    flat = layout.flatten(dict(module.named_parameters()))
    assert flat.shape == (layout.n_weights,) == (sum(p.numel() for p in module),)
    for (name, view), parameter in zip(layout.views(flat).items(), module, strict=True):
        assert torch.equal(view, module.get_parameter(name))
        assert torch.equal(view, parameter)
    many = torch.randn(*leading, layout.n_weights)
    views = layout.views(many)
    for index in torch.zeros(leading).add(1).nonzero().tolist():
        of_one = {name: view[tuple(index)] for name, view in views.items()}
        any_order = {"other": torch.zeros(3)} | dict(reversed(of_one.items()))
        assert torch.equal(layout.flatten(any_order), many[tuple(index)])
    many.zero_()
    assert not any(view.any() for view in views.values())


@pytest.mark.parametrize(
    ("generate", "names"),
    [
        ("*", ["0.weight", "0.bias", "2.weight", "2.bias"]),
        ("2.*", ["2.weight", "2.bias"]),
        (["*.bias"], ["0.bias", "2.bias"]),
        (("2.bias", "?.weight"), ["0.weight", "2.weight", "2.bias"]),
    ],
)
def test_what_the_patterns_name_is_generated_in_the_order_of_the_module(generate, names):
    hypernetwork = make(generate=generate)
    shapes = {n: p.shape for n, p in target().named_parameters() if n in names}
    assert list(hypernetwork.layout.shapes.items()) == [(n, shapes[n]) for n in names]
    assert hypernetwork(0).shape == (1, sum(s.numel() for s in shapes.values()))


def test_frozen_parameters_are_not_generated():
    of = target()
    of[0].requires_grad_(False)
    assert list(make(of=of).layout.shapes) == ["2.weight", "2.bias"]
    assert list(make(of=of, generate="*.bias").layout.shapes) == ["2.bias"]


def test_tied_parameters_are_generated_once():
    of = models.TiedWeights()
    hypernetwork = make(of=of)
    assert list(hypernetwork.layout.shapes) == ["encoder.weight"]
    x, weights = torch.randint(0, 12, (7, 5)), hypernetwork.layout.views(hypernetwork(1)[0])
    found = functional_call(of, weights, (x,))
    with torch.no_grad():
        of.encoder.weight.copy_(weights["encoder.weight"])
    assert_same(found, of(x))


@pytest.mark.parametrize(
    ("make_target", "x"),
    [(models.lenet, (2, 1, 16, 16)), (models.OwnParameter, (2, 6)), (models.Recurrent, (2, 4, 5))],
)
def test_any_module_runs_on_its_views(make_target, x):
    of, x = make_target(), torch.randn(x)
    layout = WeightLayout(of)
    flat = layout.flatten(dict(of.named_parameters()))
    expected = of(x)
    nn.utils.vector_to_parameters(torch.zeros(layout.n_weights), of.parameters())
    assert_same(functional_call(of, layout.views(flat), (x,)), expected)


def test_target_is_neither_kept_nor_changed():
    of = target()
    before = copy.deepcopy(of.state_dict())
    hypernetwork = make(of=of, init="hyperfan")
    assert all(torch.equal(before[n], t) for n, t in of.state_dict().items())
    own = {t.data_ptr() for t in of.parameters()}
    assert not own & {t.data_ptr() for t in hypernetwork.state_dict().values()}
    assert not any(isinstance(value, nn.Module) for value in vars(hypernetwork).values())
