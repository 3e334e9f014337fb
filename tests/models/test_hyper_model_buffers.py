"""Each task has buffers of its own."""

import copy

import torch
from torch import nn

from tests.support.hypernets import adapted, hyper_model, run_target, values
from tests.support.streams import task_stream
from tests.support.targets import partial, with_batch_norm


def test_training_one_task_leaves_the_statistics_of_others():
    """Each task is evaluated as by a network of its own with batch normalisation."""
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


class Centred(nn.Module):
    """Subtracts a running mean that is not saved."""

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
