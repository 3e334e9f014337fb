"""What an optimizer holds."""

import torch
from torch import nn

from avalanche_hnet.core.common.optimizers import parameters_of


def test_parameters_of_all_groups_in_order():
    first, second, third = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    optimizer = torch.optim.SGD([{"params": [second, first]}, {"params": [third]}], lr=0.1)
    assert all(
        a is b for a, b in zip(parameters_of(optimizer), (second, first, third), strict=True)
    )
