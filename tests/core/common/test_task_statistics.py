"""Statistics of each task, without Avalanche."""

import pytest
import torch
from torch import nn

from avalanche_hnet import TaskStatistics
from tests.support.models import mlp
from tests.support.task_statistics import one_head

pytestmark = pytest.mark.usefixtures("float64")


def every_layer():
    return nn.ModuleDict(
        {
            "bn1": nn.BatchNorm1d(2),
            "bn2": nn.BatchNorm2d(3),
            "bn3": nn.BatchNorm3d(4),
            "sync": nn.SyncBatchNorm(5),
            "in1": nn.InstanceNorm1d(2, track_running_stats=True),
            "in2": nn.InstanceNorm2d(3, track_running_stats=True),
            "in3": nn.InstanceNorm3d(4, track_running_stats=True),
            "none": nn.BatchNorm1d(2, track_running_stats=False),
            "plain": nn.InstanceNorm1d(2),
            "linear": nn.Linear(2, 2),
            "layer": nn.LayerNorm(2),
        }
    )


def fill(model, value):
    with torch.no_grad():
        for buffer in model.buffers():
            buffer.fill_(value)


def test_every_layer_that_tracks_statistics_is_covered():
    model, statistics = every_layer(), TaskStatistics()
    fill(model, 1)
    statistics.begin(model, 5)
    fill(model, 2)
    statistics.store(model)
    statistics.begin(model, 6)
    assert all((b == 1).all() for b in model.buffers())  # new: from the start
    fill(model, 3)
    statistics.store(model)
    fill(model, 4)  # not stored
    for label, value in ((5, 2), (6, 3), (7, 3)):
        with statistics.using(model, label):
            assert all((b == value).all() for b in model.buffers())
        assert all((b == 4).all() for b in model.buffers())
    statistics.begin(model, 5)
    assert all((b == 2).all() for b in model.buffers())  # known: its own
    kinds = {name.split(".")[0] for name in statistics.state_dict()["tasks"][5]}
    assert kinds == {"bn1", "bn2", "bn3", "sync", "in1", "in2", "in3"}
    assert len(statistics.state_dict()["tasks"][5]) == 3 * 7


def test_using_restores_the_model_after_an_exception_nested_and_in_training_mode():
    model, statistics = one_head(), TaskStatistics()
    for label, value in ((0, 1), (1, 2)):
        statistics.begin(model, label)
        fill(model, value)
        statistics.store(model)
    fill(model, 9)
    objects = [*model.buffers()]

    def run():
        with statistics.using(model, 0), statistics.using(model, 1):
            assert all((b == 2).all() for b in model.buffers())
            model(torch.randn(4, 4))
            raise KeyError

    with pytest.raises(KeyError):
        run()
    assert all((b == 9).all() for b in model.buffers())
    assert all(a is b for a, b in zip(objects, model.buffers(), strict=True))
    with statistics.using(model, 1):
        assert all((b == 2).all() for b in model.buffers())
        with statistics.using(model, 0):
            assert all((b == 1).all() for b in model.buffers())
        assert all((b == 2).all() for b in model.buffers())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_statistics_follow_the_model_to_another_dtype(dtype):
    model, statistics = one_head(), TaskStatistics()
    statistics.begin(model, 0)
    fill(model, 2)
    statistics.store(model)
    model.to(dtype)
    with statistics.using(model, 0):
        model.eval()(torch.randn(2, 4, dtype=dtype))
    statistics.begin(model, 1)
    assert model[1].running_mean.dtype == dtype
    assert (model[1].running_mean == 0).all()
    assert statistics.state_dict()["tasks"][1]["1.running_mean"].dtype == dtype
    assert statistics.state_dict()["tasks"][1]["1.num_batches_tracked"].dtype == torch.long


def test_layers_that_come_later_start_from_their_own():
    model, statistics = nn.Sequential(nn.BatchNorm1d(2)), TaskStatistics()
    statistics.begin(model, 0)
    model.append(nn.BatchNorm1d(2))
    fill(model[1], 3)
    statistics.begin(model, 1)
    fill(model[1], 4)
    statistics.store(model)
    with statistics.using(model, 0):
        assert (model[1].running_mean == 3).all()
    assert (model[1].running_mean == 4).all()


def test_errors_of_statistics():
    statistics, model = TaskStatistics(), one_head()
    with pytest.raises(ValueError, match="no task has been begun"):
        statistics.store(model)
    with pytest.raises(ValueError, match="Sequential has no layer with running statistics"):
        statistics.begin(mlp(), 0)
    with pytest.raises(ValueError, match=r"'0' \(LazyBatchNorm1d\) does not know its size yet"):
        statistics.begin(nn.Sequential(nn.LazyBatchNorm1d()), 0)
    assert statistics.task_labels == ()
    statistics.begin(model, 0)
    wider = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
    with pytest.raises(ValueError, match=r"'1.running_mean' have shape \(5,\), .* has \(6,\)"):
        statistics.begin(wider, 0)
    with (
        pytest.raises(ValueError, match=r"'1.running_mean' have shape \(5,\), .* has \(6,\)"),
        statistics.using(wider, 0),
    ):
        pass
    assert (wider[1].running_mean == 0).all()
    state = statistics.state_dict()
    for wrong, message in (
        ({}, r"the keys \['initial', 'latest', 'tasks'\], got \[\]"),
        ([], "got list"),
        (state | {"latest": 3}, r"one of the tasks \[0\], got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            statistics.load_state_dict(wrong)
    torch.testing.assert_close(statistics.state_dict(), state, rtol=0, atol=0)
