"""An interrupt leaves the statistics of tasks, and those in the model, as before or after."""

import copy

import torch
from torch import nn

from avalanche_hnet.core.common.task_statistics import TaskStatistics
from tests.support.interrupts import count_lines, interrupted
from tests.support.states import same_state


def test_beginning_a_task():
    torch.manual_seed(0)
    model, statistics = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), TaskStatistics()
    statistics.begin(model, 0)
    model(torch.randn(9, 3))
    statistics.store(model)

    def begin(both):
        return lambda: both[1].begin(both[0], 1)

    before = model, statistics
    after = copy.deepcopy(before)
    n_lines = count_lines(begin(after))
    for number in range(n_lines):
        both = copy.deepcopy(before)
        assert interrupted(begin(both), number)
        found = [of.state_dict() for of in both]
        states = [[of.state_dict() for of in pair] for pair in (before, after)]
        assert any(same_state(found, expected) for expected in states)
        begin(both)()
        assert same_state([of.state_dict() for of in both], states[1])
