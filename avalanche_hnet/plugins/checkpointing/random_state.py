"""The states of all global random number generators."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Of Python, NumPy and PyTorch, on the CPU and on GPUs in use, in plain values."""
    of_numpy: Any = np.random.get_state(legacy=True)
    kind, keys, position, has_gauss, gauss = of_numpy
    version, numbers, next_gauss = random.getstate()
    return {
        "python": [version, torch.tensor(numbers), next_gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put them into the states of :func:`random_state`."""
    version, numbers, next_gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist()), next_gauss))
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def is_same(first: Any, second: Any) -> bool:
    """Whether two states in plain values are equal."""
    if isinstance(first, torch.Tensor):
        same_kind = isinstance(second, torch.Tensor) and first.dtype == second.dtype
        return same_kind and torch.equal(first.cpu(), second.cpu())
    if isinstance(first, dict) and isinstance(second, dict):
        same_keys = first.keys() == second.keys()
        return same_keys and all(is_same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(is_same, first, second))
    return bool(first == second)
