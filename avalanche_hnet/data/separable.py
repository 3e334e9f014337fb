"""Whether a batch is its samples put together, each as it would be alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from avalanche.benchmarks.utils.collate_functions import classification_collate_mbatches_fn
from torch import Tensor
from torch.utils.data import default_collate

from avalanche_hnet.data.randomness import same_tensors
from avalanche_hnet.data.unkeepable import UnsplittableError

_KNOWN = (default_collate, classification_collate_mbatches_fn)


def is_known(collate: Callable[[Any], Any]) -> bool:
    """Whether the function puts samples side by side and does nothing else."""
    return collate in _KNOWN


def require_columns(batch: Any) -> list[Tensor]:
    """The tensors of a batch, each with the samples in dimension 0.

    Raises:
        UnsplittableError: if it is anything else, such as a dictionary.
    """
    if not isinstance(batch, (list, tuple)) or not all(isinstance(c, Tensor) for c in batch):
        kinds = [type(c).__name__ for c in batch] if isinstance(batch, (list, tuple)) else batch
        raise UnsplittableError(
            "samples must be sequences of tensors or numbers to be kept in memory, but a batch of "
            f"them is {kinds if isinstance(kinds, list) else type(kinds).__name__}"
        )
    return [*batch]


def require_separable(
    samples: Sequence[Any], batch: Sequence[Tensor], collate: Callable[[Any], Any]
) -> None:
    """Refuse a batch whose rows are not what ``collate`` makes of each sample alone.

    Padding to the longest and centring give themselves away in this, and in the reverse order of
    samples sorting does.

    Args:
        samples: B of them, as the data set gives them.
        batch: what ``collate`` makes of all of them: tensors (B, …).
        collate: the function.

    Raises:
        UnsplittableError: naming the function.
    """
    backwards = require_columns(collate([*reversed(samples)]))
    is_in_order = len(backwards) == len(batch) and all(
        same_tensors(a.flip(0), b) for a, b in zip(backwards, batch, strict=True)
    )
    for row, sample in enumerate(samples):
        alone = require_columns(collate([sample]))
        together = [column[row : row + 1] for column in batch]
        is_as_alone = len(alone) == len(together) and all(map(same_tensors, alone, together))
        if not (is_in_order and is_as_alone):
            raise UnsplittableError(
                f"the collate function {getattr(collate, '__qualname__', collate)!r} makes "
                "something else of a sample in a batch than alone, so batches cannot be cut out of "
                "samples that are kept"
            )
