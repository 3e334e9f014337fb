"""How large a hypernetwork is."""

from __future__ import annotations

from typing import NamedTuple


class Sizes(NamedTuple):
    """What a hypernetwork generates and what it costs.

    Attributes:
        generated: number of weights that it generates for each task.
        trainable: number of its own weights, embeddings of all tasks so far included.
        compression: trainable / generated; below 1 it is smaller than one main network.
    """

    generated: int
    trainable: int
    compression: float

    def __str__(self) -> str:
        return (
            f"{self.generated:,} generated weights, {self.trainable:,} trainable weights, "
            f"compression ratio {self.compression:.3f} (trainable / generated)"
        )
