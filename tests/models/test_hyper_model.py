import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from tests.support.hypernets import adapted, hyper_model, run_target
from tests.support.models import mlp
from tests.support.streams import regression_stream, task_stream
from tests.support.targets import partial


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


# Labels.


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("labels", [5, torch.tensor([5, 5]), torch.tensor([0, 5])])
def test_unknown_labels_are_refused(training, labels):
    model = adapted(hyper_model(), task_stream(2, task_labels=[0, 3]).train_stream)
    model.train(training)
    message = r"task label 5 is unknown; .* with the labels \[0, 3\]"
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        model(torch.randn(2, 6), labels)


def test_experience_without_task_labels_is_refused():
    experience = regression_stream([(torch.randn(4, 6), torch.randn(4, 2))]).train_stream[0]
    with pytest.raises(ValueError, match="task_labels"):
        adapted(hyper_model(), [experience])


def test_no_samples_are_refused():
    model = adapted(hyper_model(), task_stream(1).train_stream)
    with pytest.raises(ValueError, match="x must have at least one sample"):
        model(torch.randn(0, 6), torch.zeros(0, dtype=torch.long))


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
