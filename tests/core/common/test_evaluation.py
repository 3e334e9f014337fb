"""What runs in between leaves no trace in the global random numbers."""

import random

import numpy as np
import pytest
import torch

from avalanche_hnet.core.common.evaluation import random_numbers_kept

DRAWS = {
    "torch": lambda: torch.rand(3).tolist(),
    "random": lambda: [random.random() for _ in range(3)],
    "numpy": lambda: np.random.rand(3).tolist(),
}


@pytest.fixture(params=[np.random.MT19937, np.random.PCG64])
def _bit_generator(request):
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(request.param(0))
    yield
    np.random.set_bit_generator(before)


@pytest.mark.usefixtures("_bit_generator")
@pytest.mark.filterwarnings("ignore:get_state and legacy")
@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("times", [0, 1, 104])  # 104 draws of NumPy end where they began
def test_random_numbers_are_put_back_and_named(name, times):
    with random_numbers_kept() as used:
        drawn = [DRAWS[name]() for _ in range(times)]
    assert used == ([name] if times else [])
    assert drawn == [DRAWS[name]() for _ in range(times)]
