import pytest
import torch
from torch import nn

from avalanche_hnet.core.hypernetworks.weight_layout import WeightLayout
from avalanche_hnet.models.output_heads import OutputHeads, SharedOutputLayer, make_heads

MASK = -7.0


def heads(target=None, n_out=4, *, reuse_units=False, output_layer=None, generate="*"):
    target = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, n_out)) if target is None else target
    return make_heads(
        target,
        WeightLayout(target, generate),
        multi_head=True,
        reuse_units=reuse_units,
        output_layer=output_layer,
        mask_value=MASK,
    )


def test_units_go_to_pairs_in_the_order_in_which_they_come():
    shared = heads()
    assert shared.take({(7, 1), (7, 0)}) == [(7, 0), (7, 1)]
    assert shared.take({(3, 2), (7, 1)}) == [(3, 2)]
    assert shared.columns(7, 3).units == [0, 1]
    assert shared.columns(3, 3).units == [2]
    assert shared.columns(3, 3).classes == [2]


@pytest.mark.parametrize("reuse", [False, True])
def test_columns_are_those_of_the_classes(reuse):
    shared, outputs = heads(reuse_units=reuse), torch.randn(5, 4)
    shared.take({(0, 2), (0, 0)})
    shared.take({(1, 1)})
    masked = torch.full((5,), MASK)
    expected = torch.stack([outputs[:, 0], masked, outputs[:, 1]], dim=1)
    assert torch.equal(shared.select(outputs, 0, 3), expected)
    unit = 0 if reuse else 2
    expected = torch.stack([masked, outputs[:, unit], masked], dim=1)
    assert torch.equal(shared.select(outputs, 1, 3), expected)
    assert (shared.select(outputs, 9, 3) == MASK).all()  # a task without units


def test_a_standalone_network_keeps_the_columns_it_was_made_with():
    shared, x = heads(), torch.randn(5, 2)
    shared.take({(0, 1), (0, 0)})
    layer = nn.Linear(2, 4)
    network = shared.standalone(layer, 0, 2)
    shared.take({(0, 2)})
    assert torch.equal(network(x), layer(x)[:, :2])
    names = {f"{shared.network_prefix}{name}" for name, _ in layer.named_parameters()}
    assert {name for name, _ in network.named_parameters()} == names


def test_running_out_of_units_is_refused_and_changes_nothing():
    shared = heads(n_out=3)
    shared.take({(0, 0), (0, 1)})
    with pytest.raises(ValueError, match="has 3 units, of which 2 are taken; the"):
        shared.take({(1, 0), (1, 1)})
    assert shared.taken == [(0, 0), (0, 1)]
    reused = heads(n_out=3, reuse_units=True)
    reused.take({(0, 0), (0, 1)})
    assert reused.take({(1, 0), (1, 1)}) == [(1, 0), (1, 1)]


def test_outputs_of_another_layer_are_refused():
    with pytest.raises(ValueError, match="target has 5 outputs, but its layer '1' has 4 units"):
        heads().select(torch.zeros(2, 5), 0, 2)


def test_weights_belong_to_the_tasks_of_their_units():
    target = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3))
    layout, shared = WeightLayout(target), heads(target)
    shared.take({(7, 0)})
    shared.take({(3, 0)})
    owners = layout.views(shared.weight_owners(layout, {7: 0, 3: 1}.__getitem__))
    assert owners["1.bias"].tolist() == [0, 1, -2]  # no task has the last
    assert owners["1.weight"].tolist() == [[0, 0], [1, 1], [-2, -2]]
    assert (owners["0.weight"] == -1).all()
    assert heads(target, reuse_units=True).weight_owners(layout, int) is None


def test_names_of_the_layers_parameters_that_are_generated():
    target = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    assert heads(target).generated == {"1.weight", "1.bias"}
    assert heads(target, generate="*bias").generated == {"1.bias"}
    assert heads(target, output_layer="0").generated == {"0.weight", "0.bias"}
    assert heads(nn.Linear(3, 3)).generated == {"weight", "bias"}
    target[1].weight = target[0].weight
    assert heads(target).generated == {"0.weight", "1.bias"}


@pytest.mark.parametrize("reuse", [False, True])
def test_a_state_is_restored(reuse):
    saved, fresh = heads(reuse_units=reuse), heads(reuse_units=reuse)
    saved.take({(0, 2), (1, 0)})
    fresh.require_same_reuse(saved.state_dict())
    fresh.load_state_dict(saved.state_dict())
    assert fresh.taken == saved.taken == [(0, 2), (1, 0)]
    other = heads(reuse_units=not reuse)
    with pytest.raises(ValueError, match=f"model with reuse_units={reuse}, but this one"):
        other.require_same_reuse(saved.state_dict())


def test_heads_that_each_task_generates_leave_everything_as_it_is():
    target, outputs = nn.Linear(3, 2), torch.randn(4, 2)
    layout = WeightLayout(target)
    options = {"reuse_units": False, "output_layer": None, "mask_value": MASK}
    own_heads = make_heads(target, layout, multi_head=False, **options)
    assert not isinstance(own_heads, SharedOutputLayer)
    assert own_heads.select(outputs, 0, 5) is outputs
    assert own_heads.standalone(target, 0, 5) is target
    assert own_heads.weight_owners(layout, int) is None
    assert own_heads.generated == set()
    assert own_heads.network_prefix == ""
    assert own_heads.state_dict() == OutputHeads().state_dict()
