"""Parameters that are not generated."""

import pytest
import torch
from avalanche.training import JointTraining

from tests.support.hypernets import adapted, learner, run_target
from tests.support.strategies import naive
from tests.support.streams import task_stream
from tests.support.targets import partial, with_batch_norm


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
