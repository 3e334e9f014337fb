"""What generated weights are to stay at in an experience."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from avalanche_hnet.core.common.evaluation import evaluating
from avalanche_hnet.core.common.state_entries import check_keys, check_tensor
from avalanche_hnet.core.hypernetworks.network import HyperNetwork
from avalanche_hnet.core.hypernetworks.output_layer import Factors


@dataclass(frozen=True, eq=False)
class Targets:
    """The weights of protected tasks as they were when an experience began.

    Attributes:
        tasks: numbers of the T tasks.
        values: (T, W), or the factors that they are recomputed from.
    """

    tasks: tuple[int, ...]
    values: Tensor | Factors

    @classmethod
    @torch.no_grad()
    def of(cls, hypernetwork: HyperNetwork, tasks: tuple[int, ...], *, stored: bool) -> Targets:
        """What a hypernetwork generates now, stored or as factors."""
        with evaluating(hypernetwork.modules()):
            if stored:
                return cls(tasks, torch.cat([hypernetwork(task) for task in tasks]))
            # Of the trunk it is enough to know its outputs.
            hidden, weight, bias = hypernetwork.factors(tasks)
            return cls(tasks, Factors(hidden, weight.clone(), bias.clone()))

    def like(self, now: Targets) -> Targets:
        """The same of the type and on the device of others of the same hypernetwork.

        Raises:
            ValueError: if they are of another one.
        """
        pairs = [*zip(self._tensors().items(), now._tensors().values(), strict=True)]
        for (name, tensor), other in pairs:
            if tensor.shape != other.shape:
                raise ValueError(
                    f"{name} of the targets that were saved has shape {tuple(tensor.shape)}, but "
                    f"this hypernetwork needs {tuple(other.shape)}; it is another one"
                )
        tensors = [tensor.to(other) for (_, tensor), other in pairs]
        return Targets(self.tasks, Factors(*tensors) if len(tensors) > 1 else tensors[0])

    def state_dict(self) -> dict[str, Any]:
        """Everything there is to know, for ``torch.save``."""
        return {"tasks": [*self.tasks], **self._tensors()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], *, stored: bool) -> Targets:
        """The reverse of :meth:`state_dict`, as a copy.

        Raises:
            ValueError: naming the entry that is not what it should be.
        """
        where, names = "state['targets']", ("weights",) if stored else Factors._fields
        check_keys(where, state, ["tasks", *names])
        tasks = state["tasks"]
        if not isinstance(tasks, list) or not all(type(t) is int and t >= 0 for t in tasks):
            raise ValueError(f"{where}['tasks'] must be a list of tasks' numbers, got {tasks!r}")
        tensors = [check_tensor(f"{where}[{n!r}]", state[n]).detach().clone() for n in names]
        for name, tensor in zip(names, tensors, strict=True):
            if name in ("weights", "hidden") and (tensor.dim() < 1 or len(tensor) != len(tasks)):
                raise ValueError(
                    f"{where}[{name!r}] must have a row for each of the tasks {tasks}, got the "
                    f"shape {tuple(tensor.shape)}"
                )
        return cls(tuple(tasks), tensors[0] if stored else Factors(*tensors))

    def _tensors(self) -> dict[str, Tensor]:
        values = self.values
        return values._asdict() if isinstance(values, Factors) else {"weights": values}
