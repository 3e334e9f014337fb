"""What feeds the trunk of a hypernetwork: in the simplest case, embeddings of tasks alone.

Trunk inputs say which embeddings there are, how they are drawn and how they enter the trunk. They
hold no tensors: the embeddings are parameters of the hypernetwork, under the names given here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from avalanche_hnet.core.common.arguments import at_least, not_negative

# Values that replace those of parameters, by name.
Given = Mapping[str, Tensor]


class Embedded(NamedTuple):
    """Tasks, given by their embeddings.

    Attributes:
        tasks: embeddings of T tasks (T, 1, E).
        chunks: their chunk embeddings (T, K, …), if these are task-specific.
    """

    tasks: Tensor
    chunks: Tensor | None


class Initial(NamedTuple):
    """Normal values that depend on a hypernetwork's seed and ``key`` alone, whenever drawn."""

    shape: tuple[int, ...]
    std: float
    key: int

    def draw(self, seed: Tensor, like: Tensor) -> nn.Parameter:
        """A parameter with these values, of the type and on the device of ``like``."""
        generator = torch.Generator().manual_seed(int(seed) + self.key)
        values = self.std * torch.randn(self.shape, generator=generator, dtype=like.dtype)
        return nn.Parameter(values.to(like.device))


class TrunkInputs(Protocol):
    """What feeds a trunk.

    Attributes:
        lists: names of the lists that hold the embeddings of tasks, one for each task.
    """

    lists: ClassVar[tuple[str, ...]]

    @property
    def width(self) -> int:
        """Size of an input vector."""

    @property
    def variance(self) -> float:
        """Of the inputs at the start; their mean is zero."""

    def first_layer(self, n_outputs: int) -> nn.Linear:
        """The hidden layer that takes the inputs in."""

    def as_vectors(self) -> list[nn.Module]:
        """Modules that make plain vectors of the inputs, where there is no hidden layer."""

    def shared(self) -> dict[str, Initial]:
        """Embeddings that all tasks share, by name."""

    def of_task(self, task: int) -> list[Initial]:
        """Embeddings of a task, one for each of :attr:`lists`."""

    def embed(self, network: nn.Module, tasks: list[int], given: Given) -> Embedded:
        """The embeddings of T tasks, which are parameters of ``network`` or given."""

    def feed(
        self, network: nn.Module, embedded: Embedded, given: Given
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Inputs (T, K, …) of the trunk, or two sets of vectors of which all pairs are inputs."""


@dataclass(frozen=True)
class TaskEmbeddings:
    """A task's embedding alone, from which all weights are generated in one chunk.

    Attributes:
        dim: E.
        std: standard deviation of new embeddings.
    """

    dim: int
    std: float

    lists: ClassVar[tuple[str, ...]] = ("embeddings",)

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        at_least(1, embedding_dim=self.dim)
        not_negative(embedding_std=self.std)

    @property
    def width(self) -> int:
        """E."""
        return self.dim

    @property
    def variance(self) -> float:
        """That of the embeddings."""
        return self.std**2

    def first_layer(self, n_outputs: int) -> nn.Linear:
        """See :class:`TrunkInputs`."""
        return nn.Linear(self.dim, n_outputs)

    def as_vectors(self) -> list[nn.Module]:
        """None: they are vectors."""
        return []

    def shared(self) -> dict[str, Initial]:
        """None."""
        return {}

    def of_task(self, task: int) -> list[Initial]:
        """See :class:`TrunkInputs`."""
        return [Initial((self.dim,), self.std, key=2 * task)]

    def embed(self, network: nn.Module, tasks: list[int], given: Given) -> Embedded:
        """See :class:`TrunkInputs`."""
        return Embedded(stacked(network, "embeddings", tasks, given)[:, None], None)

    def feed(self, network: nn.Module, embedded: Embedded, given: Given) -> Tensor:
        """The embeddings (T, 1, E) as they are."""
        return embedded.tasks


def stacked(network: nn.Module, name: str, tasks: list[int], given: Given) -> Tensor:
    """The embeddings (T, …) of tasks in a list of the network."""
    by_task: dict[str, Tensor] = getattr(network, name)._parameters
    return torch.stack([given.get(f"{name}.{task}", by_task[str(task)]) for task in tasks])
