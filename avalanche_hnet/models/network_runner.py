"""Runs main networks with weights from outside."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from avalanche_hnet.core.common.logits import logits_of
from avalanche_hnet.core.common.samples import Samples, joined, like, structure_of, tensors_of
from avalanche_hnet.core.common.structures import tensors_in
from avalanche_hnet.core.common.substitution import places
from avalanche_hnet.core.hypernetworks.weight_layout import WeightLayout
from avalanche_hnet.models.main_network import (
    aliases_of,
    recurrent_layers,
    release_weights,
    renew_weights,
    strip,
)

# Main networks run at once have together at most so many weights, or inputs (64 MiB of float32).
_GROUP_BUDGET = 2**24

Remaining = Literal["shared", "per_task", "frozen", "frozen_after_first"]


class NetworkRunner:
    """Runs the main network of a task, given by number, with the weights generated for it.

    Parameters that are not generated belong to all tasks, or to one, as buffers do.

    Args:
        target: the main network, which is copied.
        layout: which of its parameters are generated.
        remaining: what happens to the others, see :class:`HyperModel`.

    Attributes:
        target: the copy, without the parameters that are generated.
        networks: copies with the buffers and parameters of one task each, by its number; none if
            tasks have none of their own.
    """

    def __init__(self, target: nn.Module, layout: WeightLayout, remaining: Remaining) -> None:
        self.target = copy.deepcopy(target)
        self.networks = nn.ModuleDict()
        self._layout = layout
        aliases = aliases_of(target)
        self._aliases = {name: aliases[name] for name in places(target) if name in aliases}
        self._recurrent = recurrent_layers(target)
        strip(self.target, layout.shapes)
        not_generated = dict(self.target.named_parameters())
        trained = {n for n, p in not_generated.items() if p.requires_grad}
        self._per_task = trained if remaining == "per_task" else set()
        self._shared = [n for n in not_generated if n not in self._per_task]
        self._has_state = bool(self._per_task) or any(True for _ in target.buffers())
        if remaining in ("per_task", "frozen"):
            self.target.requires_grad_(False)

    def add_task(self, number: int) -> None:
        """Give a task buffers and parameters of its own, with the values of ``target``."""
        if self._has_state:
            network = copy.deepcopy(self.target)
            strip(network, {n for n, _ in self.target.named_parameters()} - self._per_task)
            network.requires_grad_(True)
            self.networks[str(number)] = network

    def reset_task(self, number: int) -> None:
        """Put the buffers and parameters of one task back to their initial values."""
        if self._has_state:
            initial = self.target.state_dict()
            network = self.networks[str(number)]
            network.load_state_dict({name: initial[name] for name in network.state_dict()})

    def task_parameters(self, number: int) -> dict[str, nn.Parameter]:
        """The parameters of one task, by their names in :attr:`networks`."""
        if not self._has_state:
            return {}
        network = self.networks[str(number)]
        return {f"{number}.{name}": p for name, p in network.named_parameters()}

    def run(self, x: Any, number: int, weights: Tensor) -> Any:
        """What a task's network with the generated weights (W,) returns for ``x`` (B, …)."""
        network = self._network(number)
        parameters = self._shared_parameters() | self._layout.views(weights)
        arguments = {
            alias: parameters[name] for alias, name in self._aliases.items() if name in parameters
        }
        renew_weights(network, self._recurrent)
        outputs = functional_call(network, arguments, (x,), tie_weights=False)
        release_weights(network, self._recurrent)
        return outputs

    def group_size(self, x: Any) -> int:
        """How many tasks to run at once, so that the memory stays bounded."""
        n_inputs = sum(tensor.numel() for tensor in tensors_in(x))
        return max(1, _GROUP_BUDGET // max(self._layout.n_weights, n_inputs))

    def run_at_once(self, x: Any, numbers: Sequence[int], weights: Tensor) -> Tensor | None:
        """Logits (T, B, …) of tasks with the weights (T, W), or None where ``vmap`` fails.

        Not for networks in training mode, whose buffers it would not change.
        """
        if len(numbers) == 1 or self._recurrent:
            return None
        views = self._layout.views(weights)
        of_tasks = {a: views[n] for a, n in self._aliases.items() if n in views}
        shared = self._shared_parameters()
        of_all = {a: shared[n] for a, n in self._aliases.items() if n in shared}
        if self._has_state:
            states = [places(self.networks[str(number)]) for number in numbers]
            of_tasks |= {n: torch.stack([s[n] for s in states]) for n in states[0]}

        def run(of_task: dict[str, Tensor]) -> Tensor:
            network = of_all | of_task
            return logits_of(functional_call(self.target, network, (x,), tie_weights=False))

        try:
            return vmap(run)(of_tasks)
        except RuntimeError:  # what does not run one by one either says so there
            return None

    def run_each(
        self, x: Tensor | Samples, number: int, weights: Tensor, *, in_pairs: bool
    ) -> Tensor:
        """Logits (B, …) of a task for ``x`` (B, …), each sample with weights of its own (B, W).

        At once by ``vmap``, or one by one where that fails. Not for networks in training mode.

        Args:
            x: inputs.
            number: of the task.
            weights: see above.
            in_pairs: whether each sample is given twice, to a network that would drop the dimension
                of a sample that is alone (:meth:`keeps_dimension`).
        """

        def alone(sample: list[Tensor], of_sample: Tensor) -> Tensor:
            rows = [torch.stack([tensor] * (2 if in_pairs else 1)) for tensor in sample]
            outputs = self.run(structure_of(like(x, rows)), number, of_sample)
            return logits_of(outputs)[0]

        if not self._recurrent:
            try:
                with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no batching rule
                    at_once: Tensor = vmap(alone)(tensors_of(x), weights)
                    return at_once
            except Exception:  # of every kind; what does not run one by one either says so there
                pass
        return torch.stack([alone(tensors_of(x[n]), of) for n, of in enumerate(weights)])

    @torch.no_grad()
    def keeps_dimension(self, x: Tensor | Samples, number: int, weights: Tensor) -> bool:
        """Whether logits of a single sample have as many dimensions as those of several."""
        one, several = (joined([x[:1]] * n) for n in (1, 2))
        expected = logits_of(self.run(structure_of(several), number, weights))[:1]
        try:
            return logits_of(self.run(structure_of(one), number, weights)).shape == expected.shape
        except Exception:  # of every kind where a dimension is missing
            return False

    def standalone(self, number: int, weights: Tensor) -> nn.Module:
        """A copy of a task's main network that has the weights (W,) as parameters of its own."""
        network = copy.deepcopy(self._network(number))
        views = self._layout.views(weights)
        parameters = {n: nn.Parameter(p.clone()) for n, p in views.items()}
        for name, p in self._shared_parameters().items():
            parameters[name] = nn.Parameter(p.detach().clone(), p.requires_grad)
        for alias, name in self._aliases.items():
            if name in parameters:
                prefix, _, last = alias.rpartition(".")
                setattr(network.get_submodule(prefix), last, parameters[name])
        return network

    def _network(self, number: int) -> nn.Module:
        return self.networks[str(number)] if self._has_state else self.target

    def _shared_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters of the target that are not generated and that all tasks share."""
        return {name: attrgetter(name)(self.target) for name in self._shared}
