from dataclasses import FrozenInstanceError

import pytest
import torch

from avalanche_hnet.models.task_registry import Task, TaskRegistry


def registry(labels=(7, 3), trained=(3,)):
    tasks = TaskRegistry()
    tasks.add(labels)
    tasks.train(trained)
    return tasks


def test_tasks_are_numbered_as_they_come():
    tasks = TaskRegistry()
    assert tasks.add([7, 3, 7]) == [0, 1]
    assert tasks.add([3, 5]) == [2]
    assert tasks.labels == (7, 3, 5)
    assert [tasks.number(label) for label in (7, 3, 5)] == [0, 1, 2]


def test_trained_tasks_keep_the_order_of_their_numbers():
    tasks = registry((7, 3, 5), trained=(5, 7))
    assert tasks.trained_labels == (7, 5)
    tasks.add([5, 3])
    assert tasks.trained_labels == (7, 5)


def test_unknown_tasks_are_refused():
    message = r"task label 5 is unknown; .* with the labels \[7, 3\]"
    with pytest.raises(ValueError, match=message):
        registry().number(5)


def test_what_is_known_of_a_task_is_not_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        Task(0).is_trained = True


@pytest.mark.parametrize("known", [(), (7,), (7, 3)])
def test_a_state_is_restored(known, tmp_path):
    saved = registry()
    saved.has_trained = True
    torch.save(saved.state_dict(), tmp_path / "tasks.pt")
    tasks = registry(known, trained=known)
    new = tasks.load_state_dict(torch.load(tmp_path / "tasks.pt", weights_only=True))
    assert new == [*range(len(known), 2)]
    assert tasks.labels == (7, 3)
    assert tasks.trained_labels == (3,)  # not what was trained here before
    assert tasks.has_trained
    assert tasks.state_dict() == saved.state_dict()


@pytest.mark.parametrize("known", [(3,), (3, 7), (7, 3, 5), (5,)])
def test_a_state_with_other_numbers_is_refused_and_changes_nothing(known):
    tasks = registry(known, trained=())
    before = tasks.state_dict()
    with pytest.raises(ValueError, match=r"has the tasks \[7, 3\] in this order, but the model"):
        tasks.load_state_dict(registry().state_dict())
    assert tasks.state_dict() == before
