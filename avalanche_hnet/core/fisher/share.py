"""A Fisher that several processes compute together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from avalanche_hnet.core.common.processes import (
    add_up,
    are_several,
    n_processes,
    process_number,
    take_first,
)
from avalanche_hnet.core.fisher.options import FisherOptions


@dataclass(frozen=True, eq=False)
class Share:
    """Batches of the samples that this process sees to; the others have the rest.

    Of such batches a Fisher is the average over all samples, the same in each process. It may be
    that a process has none. A single process has all, and computes as without.

    Attributes:
        batches: see :func:`diagonal_fisher`.
    """

    batches: Iterable[Any]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def is_shared(batches: Iterable[Any]) -> bool:
    """Whether other processes have more."""
    return isinstance(batches, Share) and are_several()


def repeatable(batches: Iterable[Any]) -> Iterable[Any]:
    """Batches that can be gone through again."""
    if isinstance(batches, Share):
        return Share(repeatable(batches.batches))
    return [*batches] if isinstance(batches, Iterator) else batches


def own_options(options: FisherOptions, batches: Iterable[Any]) -> FisherOptions:
    """The same; for a :class:`Share`, with random numbers of this process's own.

    With the same ones, samples of different processes would get labels that hang together.
    """
    if not is_shared(batches) or options.kind != "sampled":
        return options
    generator = options.generator
    device = "cpu" if generator is None else generator.device
    seed = torch.randint(2**62, (), generator=generator, device=device)
    take_first([seed])
    own = torch.Generator(device).manual_seed(int(seed) + process_number())
    return replace(options, generator=own)


def own_part(batches: Iterable[Sequence[Any]]) -> Iterator[tuple[Any, ...]]:
    """Of batches that all processes have, every so manieth sample, so that each has another."""
    start = process_number()
    for batch in batches:
        yield tuple(column[start :: n_processes()] for column in batch)
        start = (start - len(batch[0])) % n_processes()


def lost_anywhere(lost: frozenset[str], names: Iterable[str]) -> frozenset[str]:
    """Those of the names that are lost to some process."""
    names = sorted(names)
    flags = torch.tensor([name in lost for name in names], dtype=torch.int32)
    add_up([flags])
    return frozenset(n for n, is_lost in zip(names, flags.tolist(), strict=True) if is_lost)


def total_of(n_samples: int) -> int:
    """The processes' samples together."""
    number = torch.tensor(n_samples)
    add_up([number])
    return int(number)
