import copy
import pickle

import pytest
import torch
from torch import nn

from avalanche_hnet.core.hypernetworks import weight_cache
from avalanche_hnet.core.hypernetworks.weight_cache import WeightCache
from tests.support import models
from tests.support.hypernetwork_oracles import CHUNKS, W, make

pytestmark = pytest.mark.usefixtures("float64")


class Counted:
    """A cache with its hypernetwork, and how many tasks' weights it had generated."""

    def __init__(self, kind="chunks of tasks", n_tasks=3, **options):
        self.hypernetwork = make(kind, n_tasks, **options).eval()
        self.cache = WeightCache()
        self.generated = 0
        self.hypernetwork.register_forward_hook(self._count)

    def _count(self, module, tasks, weights):
        self.generated += len(weights)

    def get(self, *tasks):
        return self.cache.get(self.hypernetwork, [*tasks])

    def stored(self):
        """Number of weights in the memory that the cache keeps alive."""
        storages = {w.untyped_storage() for w in self.cache._weights.values()}
        return sum({s.data_ptr(): s.nbytes() for s in storages}.values()) // 8


@pytest.mark.parametrize("kind", CHUNKS)
def test_weights_are_generated_once(kind):
    counted = Counted(kind)
    expected = counted.hypernetwork(range(3)).detach()
    counted.generated = 0
    groups = ((1,), (1, 2), (2, 1), (0,), (2, 0, 1), (1, 1, 0))
    for tasks in (*groups, *groups):
        found = counted.get(*tasks)
        torch.testing.assert_close(found, expected[[*tasks]], rtol=1e-12, atol=1e-12)
        assert not found.requires_grad
    assert counted.generated == sum(len(tasks) for tasks in groups)


def adam(**options):
    def step(hypernetwork):
        optimizer = torch.optim.Adam(hypernetwork.parameters(), 1e-9, **options)
        hypernetwork([0, 1, 2]).sum().backward()
        optimizer.step()

    return step


@torch.no_grad()
def in_place(hypernetwork):
    hypernetwork.output.bias[-1] += 1e-12


def in_data(hypernetwork):
    hypernetwork.trunk[0].parametrizations.weight.original.data.add_(1e-9)


def new_data(hypernetwork):
    hypernetwork.output.weight.data = hypernetwork.output.weight.detach() + 1e-9


def new_parameter(hypernetwork):
    hypernetwork.output.weight = nn.Parameter(hypernetwork.output.weight + 1e-9)


def from_vector(hypernetwork):
    parameters = [*hypernetwork.parameters()]
    nn.utils.vector_to_parameters(1 + nn.utils.parameters_to_vector(parameters), parameters)


def from_numpy(hypernetwork):
    hypernetwork.output.bias.detach().numpy()[0] += 1


def state(hypernetwork):
    new = {n: t + 1 if t.is_floating_point() else t for n, t in hypernetwork.state_dict().items()}
    hypernetwork.load_state_dict(new)


def assigned_state(hypernetwork):
    new = {n: t + 1 if t.is_floating_point() else t for n, t in hypernetwork.state_dict().items()}
    hypernetwork.load_state_dict(new, assign=True)


def embedding(hypernetwork):
    hypernetwork.embeddings[1].data[0] += 1


def chunk_embedding(hypernetwork):
    hypernetwork.task_chunk_embeddings[2].data[-1, -1] += 1


def buffer(hypernetwork):
    hypernetwork.offset[-1] += 1


def spectral_buffer(hypernetwork):
    hypernetwork.trunk[0].parametrizations.weight[0]._u.neg_()


def training(hypernetwork):
    hypernetwork.train()
    hypernetwork([0])
    hypernetwork.eval()


def single(hypernetwork):
    hypernetwork.float()


def not_a_number(hypernetwork):
    hypernetwork.output.bias.data[0] = float("nan")


CHANGES = [
    adam(foreach=True),
    adam(fused=True),
    adam(foreach=False),
    in_place,
    in_data,
    new_data,
    new_parameter,
    from_vector,
    from_numpy,
    state,
    assigned_state,
    embedding,
    chunk_embedding,
    buffer,
    spectral_buffer,
    training,
    single,
    not_a_number,
]


@pytest.mark.parametrize("change", CHANGES)
def test_no_change_goes_unnoticed(change):
    counted = Counted(spectral_norm=True, init="hyperfan", of=models.OwnParameter())
    before = counted.get(0, 1, 2)
    change(counted.hypernetwork)
    counted.generated = 0
    found = counted.get(0, 1, 2)
    assert counted.generated == 3
    expected = counted.hypernetwork([0, 1, 2]).detach()
    assert not torch.equal(expected, before)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_a_change_of_type_that_leaves_the_values_is_noticed():
    counted = Counted(of=models.mlp().float())
    for dtype in (torch.float32, torch.float64, torch.float32):
        counted.hypernetwork.to(dtype)
        assert counted.get(0).dtype == dtype


def test_a_change_that_is_taken_back_is_noticed_each_time():
    counted = Counted()
    before = counted.get(0)
    with torch.no_grad():
        counted.hypernetwork.output.bias.add_(1)
        torch.testing.assert_close(counted.get(0), before + 1)
        counted.hypernetwork.output.bias.sub_(1)
    torch.testing.assert_close(counted.get(0), before)


@pytest.mark.parametrize("kind", ["full", "chunks of tasks"])
def test_a_new_task_is_noticed(kind):
    counted = Counted(kind, n_tasks=1)
    counted.get(0)
    counted.hypernetwork.add_task()
    expected = counted.hypernetwork([1, 0]).detach()
    assert torch.equal(counted.get(1, 0), expected)


def test_a_task_of_another_number_is_refused():
    counted = Counted()
    counted.get(0)
    with pytest.raises(ValueError, match="no task 3"):
        counted.get(0, 3)
    assert torch.equal(counted.get(0), counted.hypernetwork(0))


def test_the_tasks_that_were_used_last_are_kept(monkeypatch):
    monkeypatch.setattr(weight_cache, "_BUDGET", 2 * W + 1)
    counted = Counted("full", n_tasks=4)
    for task in (0, 1, 0, 2):  # 1 has to go
        counted.get(task)
    assert counted.generated == 3
    counted.get(0)
    counted.get(2)
    assert counted.generated == 3
    counted.get(1)
    assert counted.generated == 4
    counted.get(2)
    assert counted.generated == 4
    expected = counted.hypernetwork(range(4)).detach()
    torch.testing.assert_close(counted.get(3, 2, 1, 0), expected.flip(0))  # more than are kept


@pytest.mark.parametrize("kind", CHUNKS)
def test_memory_is_bounded(kind, monkeypatch):
    monkeypatch.setattr(weight_cache, "_BUDGET", 2 * W + 1)
    counted = Counted(kind, n_tasks=5)
    for tasks in ((0, 1, 2, 3, 4), (3,), (0,), (4, 1, 0), (0, 2)):
        counted.get(*tasks)
        assert counted.stored() <= 2 * W
    assert counted.stored() > 0


@pytest.mark.parametrize("budget", [0, W])
def test_the_weights_of_one_task_are_always_kept(budget, monkeypatch):
    monkeypatch.setattr(weight_cache, "_BUDGET", budget)
    counted = Counted("full")
    for _ in range(3):
        counted.get(1)
    assert counted.generated == 1


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_a_copy_starts_empty(duplicate):
    counted = Counted()
    expected = counted.get(0, 1)
    twin = duplicate(counted.cache)
    assert len(pickle.dumps(counted.cache)) < 300
    assert torch.equal(twin.get(counted.hypernetwork, [0, 1]), expected)
    assert counted.generated == 4
    counted.get(0, 1)
    assert counted.generated == 4


def test_nothing_is_kept_after_clear():
    counted = Counted()
    counted.get(0)
    counted.cache.clear()
    counted.get(0)
    assert counted.generated == 2
