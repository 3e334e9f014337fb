"""Hypernetworks that generate the weights of another network in chunks."""

from __future__ import annotations

from typing import Any

from torch import nn

from avalanche_hnet.core.hypernetworks.chunks import Chunks
from avalanche_hnet.core.hypernetworks.network import HyperNetwork


class ChunkedHyperNetwork(HyperNetwork):
    """A hypernetwork that generates the weights in chunks, each from its own chunk embedding.

    The vector of W weights is cut into K = ⌈W / C⌉ chunks of C weights, of which the last may be
    cut short. One MLP generates every chunk from the chunk's embedding and the task's, so it is
    smaller than the network whose weights it generates (von Oswald et al. 2020, section 2.3).

    Args:
        target: the main network, see :class:`HyperNetwork`.
        chunk_size: C, at most W.
        chunk_embedding_dim: size of a chunk's embedding.
        task_specific_chunk_embeddings: give each task chunk embeddings of its own, which then are
            learned with the task's embedding and constant afterwards.
        chunk_embedding_std: standard deviation of new chunk embeddings.
        **options: the other arguments of :class:`HyperNetwork`.

    Raises:
        TypeError, ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        target: nn.Module,
        *,
        chunk_size: int,
        chunk_embedding_dim: int,
        task_specific_chunk_embeddings: bool = False,
        chunk_embedding_std: float = 1.0,
        **options: Any,
    ) -> None:
        chunks = Chunks(
            chunk_size, chunk_embedding_dim, chunk_embedding_std, task_specific_chunk_embeddings
        )
        super().__init__(target, chunks=chunks, **options)
        self.chunk_embedding_std = chunk_embedding_std
        self.task_specific_chunk_embeddings = task_specific_chunk_embeddings

    chunk_embeddings: nn.Parameter
    task_chunk_embeddings: nn.ParameterList
