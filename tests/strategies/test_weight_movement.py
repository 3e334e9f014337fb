import pytest
import torch

from avalanche_hnet.strategies import weight_movement
from avalanche_hnet.strategies.weight_movement import WeightMovement
from tests.support.hypernetwork_oracles import W, make

pytestmark = pytest.mark.usefixtures("float64")


def move(hypernetwork, task):
    with torch.no_grad():
        hypernetwork.embeddings[task].add_(torch.randn(3))


def test_distances_are_relative_to_the_weights_when_each_task_was_learned():
    ours, moved = make(), WeightMovement()
    assert moved.distances(ours) == {}
    learned = {}
    for tasks in ((2,), (0, 1)):
        moved.remember(ours, tasks)
        learned |= {task: ours(task)[0].detach() for task in tasks}
        distances = moved.distances(ours)
        assert all(distances[task] == 0 for task in tasks)
        move(ours, 2)
    move(ours, 0)
    found = moved.distances(ours)
    assert set(found) == {0, 1, 2}
    for task, before in learned.items():
        expected = (ours(task)[0] - before).norm() / before.norm()
        assert found[task] == pytest.approx(expected.item(), rel=1e-12)
    assert found[1] == 0 < min(found[0], found[2])
    moved.remember(ours, (0,))  # it has come back
    assert moved.distances(ours)[0] == 0
    assert moved.distances(ours)[2] == found[2]


@pytest.mark.parametrize("kind", ["full", "chunks that divide"])
def test_of_large_networks_a_sample_stands_for_all(kind, monkeypatch):
    ours = make(kind, of=torch.nn.Linear(99, 100))
    kept = {"sample": WeightMovement(), "all": WeightMovement()}
    distances = {}
    for name, n_kept in (("all", 10_000), ("sample", 2000)):
        monkeypatch.setattr(weight_movement, "_MAX_WEIGHTS", n_kept)
        kept[name].remember(ours, (0,))
        assert kept[name].distances(ours)[0] == 0
        (weights,) = kept[name]._learned.values()
        assert len(weights) == n_kept
        assert weights.untyped_storage().nbytes() < 1.1 * weights.nbytes
    move(ours, 0)
    for name, n_kept in (("all", 10_000), ("sample", 2000)):
        monkeypatch.setattr(weight_movement, "_MAX_WEIGHTS", n_kept)
        distances[name] = kept[name].distances(ours)[0]
    assert distances["sample"] == pytest.approx(distances["all"], rel=0.1)
    assert distances["sample"] != distances["all"]


def test_nothing_is_left_behind():
    ours, moved = make(dropout=0.5), WeightMovement()
    ours.trunk[0].eval()
    modes = [module.training for module in ours.modules()]
    state = torch.random.get_rng_state()
    moved.remember(ours, (0, 1))
    assert moved.distances(ours) == {0: 0, 1: 0}  # without dropout
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in ours.modules()] == modes
    assert not any(weights.requires_grad for weights in moved._learned.values())
    assert all(len(weights) == W for weights in moved._learned.values())


def test_so_many_tasks_are_followed_and_no_more(monkeypatch):
    monkeypatch.setattr(weight_movement, "_MAX_TASKS", 2)
    ours, moved = make(), WeightMovement()
    for task in (2, 0, 1):
        moved.remember(ours, (task,))
    assert moved.distances(ours) == {2: 0, 0: 0}
    move(ours, 2)
    assert moved.distances(ours)[2] > 0
    moved.remember(ours, (2,))  # it has come back
    assert moved.distances(ours) == {2: 0, 0: 0}
