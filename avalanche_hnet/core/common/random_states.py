"""The states of all global random numbers."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RandomStates:
    """Those of PyTorch (on all GPUs that are in use, too), Python and NumPy at some moment."""

    torch: Tensor
    cuda: tuple[Tensor, ...]
    python: Any
    numpy: Any

    @classmethod
    def now(cls) -> RandomStates:
        """The present ones."""
        in_use = torch.cuda.is_initialized()
        return cls(
            torch.get_rng_state(),
            tuple(torch.cuda.get_rng_state_all()) if in_use else (),
            random.getstate(),
            np.random.get_state(),
        )

    def restore(self) -> None:
        """Make them the present ones again."""
        torch.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        random.setstate(self.python)
        np.random.set_state(self.numpy)
