"""All global random states at once."""

import random

import numpy as np
import pytest
import torch

from avalanche_hnet.core.common.random_states import random_state, set_random_state


def draws(dropout=torch.nn.Dropout(0.5)):  # noqa: B008 - it has no state
    kinds = [torch.rand(5), dropout(torch.ones(50)), torch.randperm(9)]
    return [*(d.tolist() for d in kinds), random.random(), random.gauss(0, 1), np.random.randn()]


@pytest.mark.filterwarnings("ignore:get_state and legacy")
@pytest.mark.parametrize("kind", [np.random.MT19937, np.random.PCG64])
def test_the_same_numbers_come_again(kind):
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(kind(0))
    try:
        random.gauss(0, 1)  # Python and NumPy make two at a time
        np.random.randn()
        state = random_state()
        first, second = draws(), draws()
        assert first != second
        for _ in range(2):
            set_random_state(state)
            assert draws() == first
    finally:
        np.random.set_bit_generator(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_those_of_gpus_too():
    torch.rand(1, device="cuda")
    state = random_state()
    first = torch.rand(5, device="cuda")
    set_random_state(state)
    assert torch.equal(first, torch.rand(5, device="cuda"))
