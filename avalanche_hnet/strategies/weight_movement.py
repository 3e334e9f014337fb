"""How far generated weights have moved since their task was learned."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from avalanche_hnet.core.common.evaluation import evaluating
from avalanche_hnet.core.hypernetworks.network import HyperNetwork

# Of larger networks so many weights, drawn at random, stand for all: memory stays small.
_MAX_WEIGHTS = 2**14
# Of longer streams the first so many tasks are followed: neither time nor memory grow any more.
_MAX_TASKS = 32


class WeightMovement:
    """Relative distances ‖h(e_j, θ) − h_j‖ / ‖h_j‖, h_j the weights when task j was learned.

    Of the first 32 tasks.
    """

    def __init__(self) -> None:
        self._learned: dict[int, Tensor] = {}

    def remember(self, hypernetwork: HyperNetwork, tasks: tuple[int, ...]) -> None:
        """These tasks have been learned just now."""
        followed = [t for t in tasks if t in self._learned]
        followed += [t for t in tasks if t not in self._learned][: _MAX_TASKS - len(self._learned)]
        of_tasks = {task: self._weights(hypernetwork, task) for task in followed}
        self._learned = self._learned | of_tasks

    def distances(self, hypernetwork: HyperNetwork) -> dict[int, float]:
        """The distance of each task that is followed."""
        return {
            task: float((now - learned.to(now)).norm() / learned.norm())
            for task, learned in self._learned.items()
            for now in [self._weights(hypernetwork, task)]
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Remembered weights, by task."""
        return {str(task): weights for task, weights in self._learned.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Remember what :meth:`state_dict` has."""
        self._learned = {int(task): weights.clone() for task, weights in state.items()}

    @staticmethod
    @torch.no_grad()
    def _weights(hypernetwork: HyperNetwork, task: int) -> Tensor:
        with evaluating(hypernetwork.modules()):
            weights = hypernetwork(task)[0]
        if len(weights) <= _MAX_WEIGHTS:
            return weights
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randint(len(weights), (_MAX_WEIGHTS,), generator=generator)
        return weights[chosen.to(weights.device)]
