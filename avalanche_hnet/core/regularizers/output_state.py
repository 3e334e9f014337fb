"""What the regularisers of generated weights read from a state, checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from avalanche_hnet.core.common.state_entries import (
    check_not_negative,
    check_tensor,
    check_tensors,
)


def fisher_of_tasks(state: Any) -> dict[int, Tensor]:
    """Copies of the Fisher values (W,) by the number of the task.

    Raises:
        ValueError: naming the entry that is not such a tensor.
    """
    fisher: dict[int, Tensor] = {}
    for task, values in check_tensors("state['fisher']", state).items():
        where = f"state['fisher'][{task!r}]"
        if not (task.isascii() and task.isdecimal()) or str(int(task)) != task:
            raise ValueError(f"{where} must be of a task's number, got {task!r}")
        of_others = next(iter(fisher.values()), values)
        if values.dim() != 1 or len(values) != len(of_others):
            raise ValueError(
                f"{where} must be one value for each generated weight, as many as other "
                f"tasks have, got the shape {tuple(values.shape)}"
            )
        check_not_negative(where, values)
        fisher[int(task)] = values.detach().clone()
    return fisher


def generator_state(state: Any, device: torch.device) -> Tensor:
    """The state of a generator on this device.

    Raises:
        ValueError: if it is something else.
    """
    found = check_tensor("state['generator']", state, dtypes=[torch.uint8]).cpu()
    try:
        torch.Generator(device).set_state(found)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"state['generator'] must be the state of a torch.Generator on {device}: {error}"
        ) from error
    return found
