"""Weights in chunks: pairs of a task's and a chunk's embedding that feed the trunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

from torch import Tensor, nn

from avalanche_hnet.core.common.arguments import at_least, not_negative
from avalanche_hnet.core.hypernetworks.pairs import Concatenate, LinearOfPairs
from avalanche_hnet.core.hypernetworks.trunk_inputs import (
    Embedded,
    Given,
    Initial,
    TaskEmbeddings,
    TrunkInputs,
    stacked,
)


@dataclass(frozen=True)
class Chunks:
    """How generated weights are cut into chunks, and what tells these apart.

    Attributes:
        size: C, at most the number of weights W.
        embedding_dim: size of a chunk's embedding.
        embedding_std: standard deviation of new chunk embeddings.
        task_specific: whether each task has chunk embeddings of its own.

    Raises:
        TypeError, ValueError: if one is out of its range.
    """

    size: int
    embedding_dim: int
    embedding_std: float = 1.0
    task_specific: bool = False

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        at_least(1, chunk_size=self.size, chunk_embedding_dim=self.embedding_dim)
        not_negative(chunk_embedding_std=self.embedding_std)

    def inputs(self, tasks: TaskEmbeddings, n_chunks: int) -> TrunkInputs:
        """What feeds the trunk: these chunks, for each of the tasks."""
        kind = TaskSpecificChunks if self.task_specific else SharedChunks
        return kind(tasks, n_chunks, self.embedding_dim, self.embedding_std)


@dataclass(frozen=True)
class ChunkEmbeddings:
    """Pairs of a chunk's and a task's embedding, from each of which one chunk is generated.

    Attributes:
        tasks: the tasks' embeddings.
        n_chunks: K.
        dim: size of a chunk's embedding.
        std: standard deviation of new chunk embeddings.
    """

    tasks: TaskEmbeddings
    n_chunks: int
    dim: int
    std: float

    @property
    def width(self) -> int:
        """Size of both embeddings together."""
        return self.dim + self.tasks.dim

    @property
    def variance(self) -> float:
        """The mean over both embeddings."""
        of_chunks, of_tasks = self.dim * self.std**2, self.tasks.dim * self.tasks.variance
        return (of_chunks + of_tasks) / self.width

    def first_layer(self, n_outputs: int) -> nn.Linear:
        """See :class:`TrunkInputs`."""
        return LinearOfPairs(self.width, n_outputs)

    def as_vectors(self) -> list[nn.Module]:
        """Both embeddings, one after the other."""
        return [Concatenate()]


class SharedChunks(ChunkEmbeddings):
    """Chunk embeddings that all tasks share."""

    lists: ClassVar[tuple[str, ...]] = TaskEmbeddings.lists

    def shared(self) -> dict[str, Initial]:
        """See :class:`TrunkInputs`."""
        return {"chunk_embeddings": Initial((self.n_chunks, self.dim), self.std, key=-1)}

    def of_task(self, task: int) -> list[Initial]:
        """See :class:`TrunkInputs`."""
        return self.tasks.of_task(task)

    def embed(self, network: nn.Module, tasks: list[int], given: Given) -> Embedded:
        """See :class:`TrunkInputs`."""
        return self.tasks.embed(network, tasks, given)

    def feed(self, network: nn.Module, embedded: Embedded, given: Given) -> tuple[Tensor, Tensor]:
        """Embeddings of chunks (1, K, …) and tasks (T, 1, E)."""
        chunks = given.get("chunk_embeddings", cast(Tensor, network.chunk_embeddings))
        return chunks[None], embedded.tasks


class TaskSpecificChunks(ChunkEmbeddings):
    """Chunk embeddings of its own for each task."""

    lists: ClassVar[tuple[str, ...]] = (*TaskEmbeddings.lists, "task_chunk_embeddings")

    def shared(self) -> dict[str, Initial]:
        """None."""
        return {}

    def of_task(self, task: int) -> list[Initial]:
        """See :class:`TrunkInputs`."""
        of_chunks = Initial((self.n_chunks, self.dim), self.std, key=2 * task + 1)
        return [*self.tasks.of_task(task), of_chunks]

    def embed(self, network: nn.Module, tasks: list[int], given: Given) -> Embedded:
        """See :class:`TrunkInputs`."""
        of_tasks, _ = self.tasks.embed(network, tasks, given)
        return Embedded(of_tasks, stacked(network, "task_chunk_embeddings", tasks, given))

    def feed(self, network: nn.Module, embedded: Embedded, given: Given) -> tuple[Tensor, Tensor]:
        """Embeddings of chunks (T, K, …) and tasks (T, 1, E)."""
        assert embedded.chunks is not None
        return embedded.chunks, embedded.tasks
