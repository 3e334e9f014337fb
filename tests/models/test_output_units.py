"""Each task has units of the output layer."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from avalanche_hnet import FixedTarget, HyperModel, HyperNetwork
from tests.support.hypernets import adapted, hyper_model, learner, run_target, values
from tests.support.models import mlp
from tests.support.streams import task_stream, tensors, two_tasks_in_one


def test_units_of_new_classes_of_an_old_task():
    stream = task_stream(2, task_labels=[0, 0], offset=True).train_stream
    target, x = mlp(n_out=4), torch.randn(3, 6)
    model = adapted(hyper_model(target, multi_head=True), stream)
    torch.testing.assert_close(model(x, 0), run_target(target, model, 0, x))
    adapted(model, stream)
    assert model(x, 0).shape == (3, 4)


def test_columns_are_in_the_order_of_the_classes_not_of_their_units():
    stream = task_stream(2, task_labels=[0, 0], offset=True).train_stream
    target, x = mlp(n_out=4), torch.randn(3, 6)
    model = adapted(hyper_model(target, multi_head=True), [stream[1], stream[0]])
    expected = run_target(target, model, 0, x)[:, [2, 3, 0, 1]]
    torch.testing.assert_close(model(x, 0), expected)
    torch.testing.assert_close(model.main_network(0)(x), expected)


def test_units_are_not_taken_by_an_evaluation():
    stream, x = task_stream(2, offset=True).train_stream, torch.randn(3, 6)
    model = adapted(hyper_model(mlp(n_out=4), multi_head=True), stream[:1])
    adapted(model, stream[1:], training=False)
    outputs = model(x, 1)
    assert outputs.shape == (3, 4)
    assert (outputs == -1000).all()
    adapted(model, stream[1:])
    assert (model(x, 1)[:, 2:] > -1000).all()


def test_running_out_of_units_is_refused_and_changes_nothing():
    stream = task_stream(3).train_stream
    model = adapted(hyper_model(mlp(n_out=5), multi_head=True), stream[:2])
    before, extra = values(model), copy.deepcopy(model.get_extra_state())
    message = "output layer '2' has 5 units, of which 4 are taken; the experience needs 2 more"
    with pytest.raises(ValueError, match=message):
        adapted(model, stream[2:])
    assert model.get_extra_state() == extra
    torch.testing.assert_close(values(model), before)


def test_two_tasks_in_one_experience_take_units_each():
    stream = task_stream(2, n_classes=3).train_stream
    target, x = mlp(n_out=6), torch.randn(3, 6)
    model = adapted(hyper_model(target, multi_head=True), [two_tasks_in_one(stream[0], stream[1])])
    for label in (0, 1):
        expected = run_target(target, model, label, x)[:, 3 * label : 3 * label + 3]
        torch.testing.assert_close(model(x, label), expected)


def test_a_block_of_units_for_the_components_of_real_targets():
    from avalanche.benchmarks import benchmark_from_datasets, with_task_labels
    from avalanche.benchmarks.utils import AvalancheDataset, ConstantSequence, TaskLabels
    from torch.utils.data import TensorDataset

    def dataset(label):
        samples = TensorDataset(torch.randn(10, 6), torch.randn(10, 2))
        return AvalancheDataset(
            [samples], data_attributes=[TaskLabels(ConstantSequence(label, 10))]
        )

    stream = with_task_labels(benchmark_from_datasets(train=[dataset(0), dataset(1)])).train_stream
    target, x = mlp(n_out=4), torch.randn(3, 6)
    model = hyper_model(target, multi_head=True)
    strategy = learner(model, FixedTarget(mask_heads=True), criterion=nn.MSELoss())
    for experience in stream:
        strategy.train(experience)
    for label in (0, 1):
        expected = run_target(target, model, label, x)[:, 2 * label : 2 * label + 2]
        torch.testing.assert_close(model(x, label), expected)


def test_weight_owners_are_the_tasks_of_the_output_units():
    stream = task_stream(task_labels=[7, 3], n_tasks=2).train_stream
    target = mlp(n_out=5)
    model = adapted(hyper_model(target, multi_head=True), stream)
    of_units = torch.tensor([0, 0, 1, 1, -2])  # numbers, not labels; no task has the last
    owners = model.hypernetwork.layout.views(model.weight_owners())
    assert torch.equal(owners["2.bias"], of_units)
    assert torch.equal(owners["2.weight"], of_units[:, None].expand(5, 8))
    assert (owners["0.weight"] == -1).all()
    assert (owners["0.bias"] == -1).all()
    assert adapted(hyper_model(), stream).weight_owners() is None


class ConvolutionalHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.head = nn.Conv1d(2, 4, 4)

    def forward(self, x):
        return self.head(self.first(x).tanh().view(-1, 2, 4)).flatten(1)


def test_a_convolution_as_output_layer():
    target, x = ConvolutionalHead(), torch.randn(3, 6)
    stream = task_stream(2).train_stream
    model = adapted(hyper_model(target, multi_head=True, output_layer="head"), stream)
    owners = model.hypernetwork.layout.views(model.weight_owners())
    assert owners["head.weight"].shape == (4, 2, 4)
    assert (owners["head.weight"] == torch.tensor([0, 0, 1, 1])[:, None, None]).all()
    assert (owners["first.weight"] == -1).all()
    torch.testing.assert_close(model(x, 1), run_target(target, model, 1, x)[:, 2:])


def test_the_target_itself_may_be_the_output_layer():
    target, x = nn.Linear(6, 4), torch.randn(3, 6)
    model = adapted(hyper_model(target, multi_head=True), task_stream(2).train_stream)
    torch.testing.assert_close(model(x, 1), run_target(target, model, 1, x)[:, 2:])
    owners = model.hypernetwork.layout.views(model.weight_owners())
    assert owners["bias"].tolist() == [0, 0, 1, 1]


def test_a_parametrized_output_layer_has_units_too():
    target, x = nn.Sequential(mlp(n_out=5), weight_norm(nn.Linear(5, 4))), torch.randn(3, 6)
    model = adapted(hyper_model(target, multi_head=True), task_stream(2).train_stream)
    torch.testing.assert_close(model(x, 1), run_target(target, model, 1, x)[:, 2:])
    owners = model.hypernetwork.layout.views(model.weight_owners())
    assert owners["1.bias"].tolist() == [0, 0, 1, 1]
    assert (owners["1.parametrizations.weight.original1"] != -1).all()


def global_labels(n_tasks=3):
    """Classes 0, 1 | 2, 3 | 4, 5."""
    return task_stream(n_tasks, offset=True).train_stream


@pytest.mark.usefixtures("float64")
def test_reused_units_are_each_tasks_own():
    """Two outputs are enough for any labels; logits are those of the main network."""
    model = hyper_model(mlp(n_out=2), multi_head=True, reuse_units=True)
    adapted(model, global_labels())
    x = torch.randn(4, 6)
    for label in range(3):
        raw = run_target(mlp(n_out=2), model, label, x)
        found = model(x, label)
        assert found.shape == (4, 6)
        own = [2 * label, 2 * label + 1]
        torch.testing.assert_close(found[:, own], raw, rtol=0, atol=0)
        others = [c for c in range(6) if c not in own]
        assert (found[:, others] == -1000).all()
        torch.testing.assert_close(model.main_network(label)(x), found, rtol=0, atol=0)
    mixed = model(x, torch.tensor([2, 0, 2, 1]))
    singles = [model(x[i : i + 1], t) for i, t in enumerate([2, 0, 2, 1])]
    torch.testing.assert_close(mixed, torch.cat(singles))
    torch.testing.assert_close(model.forward_tasks(x, [0, 2])[1], model(x, 2))
    twin = hyper_model(mlp(n_out=2), multi_head=True, reuse_units=True)
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(twin.eval()(x, 1), model.eval()(x, 1))


def test_reused_units_learn_and_are_protected():
    model = hyper_model(mlp(n_out=2), multi_head=True, reuse_units=True)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    strategy = learner(model, FixedTarget(0.1), optimizer=optimizer, train_epochs=60)
    experiences = global_labels()
    for experience in experiences:
        strategy.train(experience)
    for label, experience in enumerate(experiences):
        x, y, _ = tensors(experience)
        model.eval()
        assert (model(x, label).argmax(1) == y).double().mean() > 0.75


def test_reused_units_refuse_what_they_cannot_do():
    with pytest.raises(ValueError, match="reuse_units=True needs multi_head=True"):
        hyper_model(mlp(n_out=2), reuse_units=True)
    target = mlp(n_out=2)
    partial = HyperNetwork(target, embedding_dim=3, generate="0.*")
    with pytest.raises(ValueError, match="needs the output layer to be generated"):
        HyperModel(target, partial, multi_head=True, reuse_units=True)
    model = hyper_model(mlp(n_out=2), multi_head=True, reuse_units=True)
    three = task_stream(1, n_classes=3).train_stream
    message = "has 2 units, of which 0 are taken for task 0; the experience needs 3 more"
    with pytest.raises(ValueError, match=message):
        adapted(model, three)
    assert model.weight_owners() is None
    model = hyper_model(mlp(n_out=2), multi_head=True, reuse_units=True)
    with pytest.raises(ValueError, match=r"mask_heads=True .* reuse_units=True"):
        learner(model, FixedTarget(mask_heads=True))


def test_a_state_with_other_units_is_refused():
    saved = adapted(hyper_model(mlp(n_out=6), multi_head=True), global_labels()).state_dict()
    twin = hyper_model(mlp(n_out=6), multi_head=True, reuse_units=True)
    with pytest.raises(ValueError, match="reuse_units=False, but this one has reuse_units=True"):
        twin.load_state_dict(saved)
