import pytest
import torch
from avalanche.models import MTSimpleMLP
from torch import nn

from avalanche_hnet.core.common.task_labels import may_take_task_labels, takes_task_labels
from tests.support import models


class Named(nn.Module):
    def forward(self, x, task_labels=None):
        return x


class Required(nn.Module):
    def forward(self, x, context):
        return x


class Optional(nn.Module):
    def forward(self, x, scale=1.0):
        return x


@pytest.mark.parametrize(
    ("model", "takes", "may_take"),
    [
        (MTSimpleMLP(), True, True),
        (torch.compile(MTSimpleMLP()), True, True),  # which says (*args, **kwargs) of its forward
        (models.MultiHead(), True, True),
        (Named(), True, True),
        (Required(), True, True),
        (Optional(), False, True),
        (models.mlp(), False, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_models_say_whether_they_take_task_labels(model, takes, may_take):
    assert takes_task_labels(model) == takes
    assert may_take_task_labels(model) == may_take
