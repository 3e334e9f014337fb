import copy
import pickle

import numpy as np
import pytest
import torch
import torchvision
from avalanche.benchmarks import tensors_benchmark
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import Cumulative, JointTraining, Naive, Replay
from avalanche.training.plugins import (
    EarlyStoppingPlugin,
    EvaluationPlugin,
    EWCPlugin,
    LRSchedulerPlugin,
    LwFPlugin,
    ReplayPlugin,
)
from torch import nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import weight_norm

from avalanche_hnet import (
    FixedTarget,
    HyperModel,
    HyperNetwork,
    PriorEWCPlugin,
    active_elements,
)
from tests.hypernets import (
    adapted,
    hyper_model,
    learner,
    run_target,
    tensors,
    values,
)
from tests.models import OwnParameter, Recurrent, TiedWeights, lenet, mlp
from tests.oracles import loop_fisher
from tests.streams import regression_stream, task_stream, two_tasks_in_one
from tests.test_prior_ewc import naive


def with_batch_norm(n_out=2):
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, n_out))


def with_weight_norm(n_out=2):
    return nn.Sequential(weight_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, n_out))


# Outputs: those of the target with the generated weights.


@pytest.mark.parametrize("chunk_size", [None, 7])
@pytest.mark.parametrize("training", [False, True])
def test_equals_the_target_run_with_the_generated_weights(chunk_size, training):
    target, x = mlp(n_out=2), torch.randn(4, 6)
    model = hyper_model(target, hypernet={"chunk_size": chunk_size})
    adapted(model, task_stream(3).train_stream).train(training)
    outputs = [model(x, torch.full((4,), label)) for label in range(3)]
    for label in range(3):
        torch.testing.assert_close(outputs[label], run_target(target, model, label, x))
        torch.testing.assert_close(model.main_network(label)(x), outputs[label])
    assert not torch.allclose(outputs[0], outputs[1])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("offset", [False, True])
def test_multi_head_chooses_the_units_of_the_task(training, offset):
    """Units in the order in which pairs of task and class were first trained on."""
    stream = task_stream(3, offset=offset).train_stream
    target, x = mlp(n_out=6), torch.randn(4, 6)
    model = adapted(hyper_model(target, multi_head=True), [stream[2], stream[0]]).train(training)
    units = {2: [0, 1], 0: [2, 3]}
    for label, own in units.items():
        outputs = model(x, label)
        columns = [2 * label, 2 * label + 1] if offset else [0, 1]
        torch.testing.assert_close(outputs[:, columns], run_target(target, model, label, x)[:, own])
        others = [c for c in range(outputs.shape[1]) if c not in columns]
        assert len(others) == (4 if offset else 0)
        assert (outputs[:, others] == -1000).all()
        torch.testing.assert_close(model.main_network(label)(x), outputs)


@pytest.mark.parametrize("training", [False, True])
def test_main_network_stands_alone(training):
    """It keeps its weights and statistics when the model is trained further."""
    model = adapted(hyper_model(with_batch_norm()), task_stream(2).train_stream)
    x = torch.randn(4, 6)
    model(x, 0)
    model.train(training)
    network, before = model.main_network(0), values(model)
    found = network(x)
    torch.testing.assert_close(values(model), before)
    torch.testing.assert_close(found, model(x, 0))
    for parameter in model.parameters():
        parameter.data.add_(1.0)
    model.train()
    model(10 * x, 0)
    network.train(training)
    if not training:
        torch.testing.assert_close(network(x), found)
    assert set(dict(network.named_parameters())) == {
        n for n, _ in with_batch_norm().named_parameters()
    }


def test_main_network_has_the_weights_that_evaluation_uses():
    """Without dropout in the hypernetwork, whose mode stays as it is."""
    model = hyper_model(hypernet={"dropout": 0.5, "hidden": (40, 40)})
    adapted(model, task_stream(1).train_stream)
    network, x = model.main_network(0), torch.randn(3, 6)
    assert all(m.training for m in model.modules())
    torch.testing.assert_close(network(x), model.eval()(x, 0))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("multi_head", [False, True])
def test_mixed_tasks_keep_the_order_and_add_their_gradients(multi_head):
    model = hyper_model(mlp(n_out=6 if multi_head else 2), multi_head=multi_head)
    adapted(model, task_stream(3).train_stream)
    x, labels = torch.randn(7, 6), torch.tensor([2, 0, 1, 1, 0, 2, 0])
    weights = torch.randn(7, 2)
    (model(x, labels) * weights).sum().backward()
    mixed = {n: p.grad.clone() for n, p in model.named_parameters()}
    outputs = model(x, labels)
    model.zero_grad()
    for n, label in enumerate(labels.tolist()):
        alone = model(x[n : n + 1], label)
        torch.testing.assert_close(outputs[n : n + 1], alone)
        (alone * weights[n]).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(mixed[name], parameter.grad, msg=name)


def test_one_label_for_all_samples_and_none_for_all_tasks():
    stream, x = task_stream(3).train_stream, torch.randn(4, 6)
    model = adapted(hyper_model(), stream[:2])
    adapted(model, stream[2:], training=False)
    expected = model(x, torch.ones(4, dtype=torch.long))
    torch.testing.assert_close(model(x, 1), expected)
    torch.testing.assert_close(model(x, torch.tensor(1)), expected)
    torch.testing.assert_close(model.forward_single_task(x, 1), expected)
    everything = model(x, None)
    assert set(everything) == {0, 1}  # task 2 was only evaluated
    torch.testing.assert_close(everything[1], expected)
    assert model.task_labels == (0, 1, 2)
    assert model.trained_task_labels == (0, 1)


def test_outputs_of_any_shape():
    class Convolutional(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(1, 3, 3, padding=1)

        def forward(self, x):
            return self.layer(x.view(-1, 1, 2, 3))

    model = adapted(hyper_model(Convolutional()), task_stream(2).train_stream)
    outputs = model(torch.randn(5, 6), torch.tensor([0, 1, 1, 0, 1]))
    assert outputs.shape == (5, 3, 2, 3)


# Targets: any module, unchanged.


class Transformer(nn.Module):
    def __init__(self, n_out=2):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.embedding = nn.Linear(5, 8)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.last = nn.Linear(8, n_out)

    def forward(self, x):
        return self.last(self.encoder(self.embedding(x)).mean(1))


TARGETS = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=3), (3, 32, 32)),
    "lenet": (lenet, (1, 16, 16)),
    "transformer": (Transformer, (4, 5)),
    "own parameter": (OwnParameter, (6,)),
    "tied weights": (TiedWeights, None),
    "lstm": (Recurrent, (4, 5)),
    "weight_norm": (with_weight_norm, (6,)),
    "batch norm": (with_batch_norm, (6,)),
}


def stream_for(shape, n_samples=6):
    """Two tasks of two classes; integers from 0 to 11 where there is no shape."""
    y = torch.arange(n_samples) % 2
    inputs = [
        torch.randint(12, (n_samples, 4)) if shape is None else torch.randn(n_samples, *shape)
        for _ in range(2)
    ]
    data = [(x, y) for x in inputs]
    return tensors_benchmark(train_tensors=data, test_tensors=data, task_labels=[0, 1])


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
    if name != "batch norm" and name != "resnet18":  # which have statistics of their own now
        torch.testing.assert_close(run_target(target.eval(), model, 0, x), outputs)

    torch.testing.assert_close(copy.deepcopy(model)(x, 0), outputs)
    if name != "weight_norm":  # which PyTorch does not pickle
        torch.testing.assert_close(pickle.loads(pickle.dumps(model))(x, 0), outputs)

    assert set(vars(target)) == attributes
    assert all(p.requires_grad and p.grad is None for p in target.parameters())
    torch.testing.assert_close(target.state_dict(), state, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["lstm", "tied weights", "transformer"])
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


# Buffers: of each task.


def test_training_one_task_leaves_the_statistics_of_others():
    """What a task is evaluated with equals a batch normalisation network of its own."""
    model = adapted(hyper_model(with_batch_norm()), task_stream(2).train_stream)
    alone, x = [with_batch_norm() for _ in range(2)], torch.randn(8, 6)
    for step in range(4):
        inputs = step + torch.randn(8, 6) * (1 + step)
        model.train()
        before = model.eval()(x, 0).clone()
        model.train()
        label = 1 if step % 2 else 0
        model(inputs, label)
        run_target(alone[label].train(), model, label, inputs)
        if label == 1:
            assert torch.equal(model.eval()(x, 0), before)
        else:
            assert not torch.equal(model.eval()(x, 0), before)
    for label in range(2):
        expected = run_target(alone[label].eval(), model, label, x)
        torch.testing.assert_close(model.eval()(x, label), expected)
        own = model.networks[str(label)][1]
        assert torch.equal(own.running_var, alone[label][1].running_var)
        assert own.num_batches_tracked == 2
    assert model.target[1].num_batches_tracked == 0


def test_mixed_tasks_are_normalised_each_for_itself():
    model = adapted(hyper_model(with_batch_norm()), task_stream(2).train_stream)
    other = copy.deepcopy(model)
    x, labels = torch.randn(8, 6), torch.tensor([0, 1] * 4)
    x[1::2] += 5
    outputs = model(x, labels)
    torch.testing.assert_close(outputs[::2], other(x[::2], 0))
    torch.testing.assert_close(outputs[1::2], other(x[1::2], 1))
    torch.testing.assert_close(values(model), values(other))


def test_statistics_start_with_the_targets():
    target = with_batch_norm()
    target(3 + torch.randn(20, 6))
    model = adapted(hyper_model(target), task_stream(1).train_stream)
    assert torch.equal(model.networks["0"][1].running_mean, target[1].running_mean)


# Remaining parameters.


def partial(remaining, target=None):
    """Only the last layer is generated."""
    target = with_batch_norm() if target is None else target
    return hyper_model(target, hypernet={"generate": "3.*"}, remaining=remaining)


def trained_layer(model, label):
    return model.main_network(label)[0].weight.detach().clone()


def layers_during(remaining, labels, **options):
    """The first layer of tasks 0 and 1 before the training and after each experience."""
    stream = task_stream(task_labels=labels).train_stream
    model = adapted(partial(remaining), task_stream(2).train_stream[:2], training=False)
    optimizer = torch.optim.AdamW(model.parameters(), 0.05, weight_decay=0.1)
    strategy = options.pop("make", learner)(model, optimizer=optimizer, **options)
    layers = [[trained_layer(model, label) for label in (0, 1)]]
    for experience in stream:
        strategy.train(experience)
        layers.append([trained_layer(model, label) for label in (0, 1)])
    return layers


@pytest.mark.parametrize("make", [learner, naive])
def test_shared_parameters_are_trained_by_all_tasks(make):
    start, first, second = layers_during("shared", [0, 1], make=make)
    for layers in (start, first, second):
        assert torch.equal(*layers)
    assert not torch.equal(start[0], first[0])
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize("make", [learner, naive])
def test_each_task_trains_parameters_of_its_own(make):
    start, first, second, third = layers_during("per_task", [0, 1, 0], make=make)
    assert torch.equal(*start)
    assert not torch.equal(first[0], start[0])
    assert torch.equal(first[1], start[1])
    assert torch.equal(second[0], first[0])
    assert not torch.equal(second[1], first[1])
    assert not torch.equal(third[0], second[0])
    assert torch.equal(third[1], second[1])


@pytest.mark.parametrize("make", [learner, naive])
def test_frozen_parameters_never_move(make):
    for layers in layers_during("frozen", [0, 1], make=make):
        assert all(torch.equal(layer, with_the_same_start()) for layer in layers)


def with_the_same_start():
    torch.manual_seed(0)
    return with_batch_norm()[0].weight


@pytest.mark.parametrize("make", [learner, naive])
@pytest.mark.parametrize("labels", [[0, 1, 0], [0, 0, 1]])
def test_frozen_after_the_first_experience(make, labels):
    start, first, second, third = layers_during("frozen_after_first", labels, make=make)
    assert not torch.equal(start[0], first[0])
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[0], third[0])


def test_joint_training_is_one_experience_after_which_parameters_are_frozen():
    model = partial("frozen_after_first")
    before = model.target[0].weight.detach().clone()
    naive(model, strategy=JointTraining).train(task_stream(2).train_stream)
    assert not torch.equal(model.target[0].weight, before)


@pytest.mark.parametrize("remaining", ["shared", "per_task", "frozen", "frozen_after_first"])
def test_parameters_that_the_user_froze_stay_as_they_are(remaining):
    target = with_batch_norm()
    target[0].requires_grad_(False)
    before = target[0].weight.clone()
    model = partial(remaining, target)
    strategy = learner(model)
    for experience in task_stream(2).train_stream:
        strategy.train(experience)
    for label in (0, 1):
        assert torch.equal(trained_layer(model, label), before)
        assert not model.main_network(label)[0].weight.requires_grad


def test_generated_parameters_are_the_targets_alone():
    """With a part generated, outputs are those of the target with that part replaced."""
    target, x = with_batch_norm(), torch.randn(4, 6)
    for remaining in ("shared", "per_task", "frozen"):
        model = adapted(partial(remaining, target), task_stream(2).train_stream).eval()
        torch.testing.assert_close(model(x, 1), run_target(target.eval(), model, 1, x))


# Heads.


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


# The cache: weights that are not generated twice, but never stale.


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


# Labels.


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("labels", [5, torch.tensor([5, 5]), torch.tensor([0, 5])])
def test_unknown_labels_are_refused(training, labels):
    model = adapted(hyper_model(), task_stream(2, task_labels=[0, 3]).train_stream)
    model.train(training)
    message = r"task label 5 is unknown; .* with the labels \[0, 3\]"
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        model(torch.randn(2, 6), labels)


def test_main_network_of_an_unknown_label_is_refused():
    model = adapted(hyper_model(), task_stream(1).train_stream)
    with pytest.raises(ValueError, match="task label 9 is unknown"):
        model.main_network(9)


def test_experience_without_task_labels_is_refused():
    experience = regression_stream([(torch.randn(4, 6), torch.randn(4, 2))]).train_stream[0]
    with pytest.raises(ValueError, match="task_labels"):
        adapted(hyper_model(), [experience])


def test_no_samples_are_refused():
    model = adapted(hyper_model(), task_stream(1).train_stream)
    with pytest.raises(ValueError, match="x must have at least one sample"):
        model(torch.randn(0, 6), torch.zeros(0, dtype=torch.long))


# State.


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: mlp(n_out=2), {}),
        (lambda: mlp(n_out=4), {"multi_head": True}),
        (with_batch_norm, {}),
        (with_batch_norm, {"hypernet": {"generate": "3.*"}, "remaining": "per_task"}),
        (with_batch_norm, {"hypernet": {"generate": "3.*"}, "remaining": "frozen_after_first"}),
        (
            lambda: mlp(n_out=2),
            {"hypernet": {"chunk_size": 7, "task_specific_chunk_embeddings": True}},
        ),
    ],
)
@pytest.mark.parametrize("offset", [False, True])
def test_state_fits_a_fresh_model(tmp_path, make, options, offset):
    benchmark = task_stream(2, task_labels=[7, 3], offset=offset and "multi_head" in options)
    model = hyper_model(make(), **options)
    strategy = learner(model, FixedTarget())
    for experience in benchmark.train_stream:
        strategy.train(experience)
    torch.save(model.state_dict(), tmp_path / "model.pt")

    fresh = hyper_model(make(), **options)
    fresh.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    x, labels = torch.randn(5, 6), torch.tensor([7, 3, 3, 7, 3])
    assert fresh.task_labels == (7, 3)
    assert fresh.trained_task_labels == (7, 3)
    assert torch.equal(fresh.eval()(x, labels), model.eval()(x, labels))
    assert fresh(x, None).keys() == model(x, None).keys()
    assert values(fresh).keys() == values(model).keys()
    adapted(fresh, benchmark.train_stream)  # nothing new
    assert values(fresh).keys() == values(model).keys()


@pytest.mark.parametrize("labels", [[3, 7], [5], [5, 6], [7, 3, 5]])
def test_state_of_other_tasks_is_loaded_right_or_refused(labels):
    """Into a model that has seen tasks already, in this order."""
    x = torch.randn(5, 6)
    model = adapted(hyper_model(), task_stream(task_labels=[7, 3]).train_stream).eval()
    other = adapted(hyper_model(), task_stream(task_labels=labels).train_stream).eval()
    try:
        other.load_state_dict(model.state_dict())
    except (RuntimeError, ValueError):
        return
    for label in (7, 3):
        torch.testing.assert_close(other(x, label), model(x, label))


def test_tasks_that_the_hypernetwork_has_already_are_taken_over():
    model = hyper_model()
    model.hypernetwork.add_task()
    first = model.hypernetwork.embeddings[0]
    adapted(model, task_stream(2, task_labels=[7, 3]).train_stream)
    assert model.hypernetwork.n_tasks == 2
    assert model.task_parameters(7) == {"hypernetwork.embeddings.0": first}


def test_new_embeddings_do_not_depend_on_what_was_drawn_before():
    """Nor on evaluations in between."""
    stream, embeddings = task_stream(3).train_stream, []
    for disturb in (False, True):
        torch.manual_seed(0)
        model = adapted(hyper_model(), stream[:1])
        if disturb:
            torch.rand(1)
            adapted(model, stream, training=False)
        embeddings.append(adapted(model, stream).hypernetwork.embeddings[2].detach())
    assert torch.equal(*embeddings)


# In Avalanche.


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("remaining", ["shared", "per_task"])
def test_prior_ewc_takes_what_belongs_to_other_tasks_for_inactive(remaining):
    benchmark = task_stream(3)
    model, plugin = partial(remaining), PriorEWCPlugin(10.0)
    strategy = naive(model, plugin, optimizer=torch.optim.AdamW(model.parameters(), 0.01))
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream)  # adds tasks 1 and 2
    if remaining == "shared":
        x, y, labels = tensors(benchmark.train_stream[0])
        expected = loop_fisher(model, x, y, nn.functional.cross_entropy, labels)
        for name, known in plugin.posterior.known.items():
            assert known.all(), name
            torch.testing.assert_close(plugin.posterior.precision[name], 1 + 20 * expected[name])
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    strategy.train(benchmark.train_stream[1])

    def belongs_to(label):
        return set(model.task_parameters(label))

    assert len(belongs_to(0)) == (1 if remaining == "shared" else 5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            others = name in belongs_to(0) | belongs_to(2)
            assert torch.equal(parameter, before[name]) == others, name
            assert plugin.posterior.known[name].any() == (name not in belongs_to(2)), name
    active = active_elements(model, benchmark.train_stream[1])
    assert {n for n, mask in active.items() if not mask.any()} == belongs_to(0) | belongs_to(2)


def early_stopping(optimizer):
    return EarlyStoppingPlugin(1, "test_stream")


def scheduler(optimizer):
    return LRSchedulerPlugin(torch.optim.lr_scheduler.StepLR(optimizer, 1))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("multi_head", [False, True])
@pytest.mark.parametrize(
    ("strategy", "options", "plugin"),
    [
        (Naive, {}, None),
        (Cumulative, {}, None),
        (JointTraining, {}, None),
        (Replay, {"mem_size": 10}, None),
        (Naive, {}, lambda _: ReplayPlugin(10)),
        (Naive, {}, lambda _: LwFPlugin(1.0, 2.0)),
        (Naive, {}, lambda _: EWCPlugin(1.0)),
        (Naive, {}, lambda _: EWCPlugin(1.0, mode="online", decay_factor=0.5)),
        (Naive, {"eval_every": 1, "train_epochs": 4}, early_stopping),
        (Naive, {}, scheduler),
        (Naive, {"eval_every": 1, "peval_mode": "iteration"}, None),
    ],
)
def test_works_in_avalanches_strategies(strategy, options, plugin, multi_head):
    benchmark, target = task_stream(3), mlp(n_out=6 if multi_head else 2)
    model = hyper_model(target, multi_head=multi_head)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    plugins = [] if plugin is None else [plugin(optimizer)]
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True, experience=True))
    cl = naive(
        model, *plugins, strategy=strategy, optimizer=optimizer, evaluator=evaluator, **options
    )
    at_once = strategy is JointTraining
    for part in [benchmark.train_stream] if at_once else benchmark.train_stream:
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        cl.train(part, eval_streams=[benchmark.test_stream])
        results = cl.eval(benchmark.test_stream)
        assert {f"Top1_Acc_Exp/eval_phase/test_stream/Task{t:03}/Exp{t:03}" for t in range(3)} <= (
            results.keys()
        )
        if plugin is not early_stopping:  # which may go back to the start
            moved = {n for n, p in before.items() if not torch.equal(model.get_parameter(n), p)}
            assert "hypernetwork.output.weight" in moved
    assert model.trained_task_labels == (0, 1, 2)
    x, label = torch.randn(4, 6), 1
    expected = run_target(target, model.eval(), label, x)
    torch.testing.assert_close(model(x, label), expected[:, 2:4] if multi_head else expected)


@pytest.mark.parametrize("strategy", [Naive, Cumulative, JointTraining])
def test_learns(strategy):
    benchmark = task_stream(2, n_samples=40)
    model = hyper_model(mlp(n_out=2))
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    cl = naive(model, strategy=strategy, optimizer=optimizer, evaluator=evaluator, train_epochs=15)
    at_once = strategy is JointTraining
    for part in [benchmark.train_stream] if at_once else benchmark.train_stream:
        cl.train(part)
    last = benchmark.test_stream if strategy is not Naive else benchmark.test_stream[1:]
    results = cl.eval(last)
    assert results["Top1_Acc_Stream/eval_phase/test_stream/Task001"] > 0.9


@pytest.mark.parametrize("remaining", [None, "shared", "per_task", "frozen"])
def test_functional_call_replaces_the_models_parameters(remaining):
    """As torch.func's transformations do, and with them the Fisher information."""
    model = hyper_model() if remaining is None else partial(remaining)
    adapted(model, task_stream(1).train_stream).eval()
    x = torch.randn(3, 6)
    other = {n: p.detach() + 1 for n, p in model.named_parameters()}
    with torch.no_grad():
        kept = model(x, 0)
        replaced = functional_call(model, other, (x, 0))
        assert not torch.allclose(replaced, kept)
        torch.testing.assert_close(model(x, 0), kept)
        for name, parameter in model.named_parameters():
            parameter.copy_(other[name])
        torch.testing.assert_close(model(x, 0), replaced)


def test_labels_of_any_integer_type():
    model, x = adapted(hyper_model(), task_stream(2).train_stream), torch.randn(3, 6)
    assert torch.equal(model(x, np.int64(1)), model(x, 1))


def test_dropout_that_is_left_on_is_drawn_in_every_call():
    model = adapted(hyper_model(hypernet={"dropout": 0.5}), task_stream(1).train_stream).eval()
    for module in model.hypernetwork.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    x = torch.randn(3, 6)
    with torch.no_grad():
        assert not torch.equal(model(x, 0), model(x, 0))


def test_a_task_can_start_anew_with_its_buffers():
    model = partial("per_task")
    adapted(model, task_stream(2).train_stream)
    before = values(model)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for label in (0, 1):
        model(torch.randn(8, 6), label).square().sum().backward()
    optimizer.step()
    model.reset_task(1)
    for name, value in values(model).items():
        of_task = name.startswith("networks.1.") or name == "hypernetwork.embeddings.1"
        if of_task:
            assert torch.equal(value, before[name]), name
        elif value.is_floating_point() and name.startswith(("networks.0.", "hypernetwork.emb")):
            assert not torch.equal(value, before[name]), name


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


class Centred(nn.Module):
    """Takes a running mean away that is not saved."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 2)
        self.register_buffer("mean", torch.zeros(6), persistent=False)

    def forward(self, x):
        if self.training:
            self.mean.add_(x.detach().mean(0))
        return self.layer(x - self.mean)


def test_buffers_that_are_not_saved_are_each_tasks_own():
    model, x = adapted(hyper_model(Centred()), task_stream(2).train_stream), torch.randn(4, 6)
    model.train()
    model(x, 0)
    model.eval()
    found = model.forward_tasks(x, [0, 1])
    for label in (0, 1):
        torch.testing.assert_close(found[label], model(x, label))
