"""Checksums of a state's entries, by which damage is found that leaves them plausible."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

CHECKSUMS = "checksums"


def with_checksums(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state and, as one more entry, the CRC-32 of each of its tensors and plain values.

    Those of tensors are of type, shape and values, on any device.
    """
    entries = {key: value for key, value in state.items() if key != CHECKSUMS}
    return {**entries, CHECKSUMS: dict(_checksums("", entries))}


def check_checksums(state: Mapping[str, Any]) -> None:
    """Refuse a state that is not as :func:`with_checksums` has made it.

    Without checksums, as older states are, it is taken as it is.

    Raises:
        ValueError: naming the first entry that differs or is missing.
    """
    if CHECKSUMS not in state:
        return
    expected = state[CHECKSUMS]
    if not isinstance(expected, Mapping):
        raise ValueError(
            f"state[{CHECKSUMS!r}] must be a dictionary, got {type(expected).__name__}"
        )
    found = dict(_checksums("", {k: v for k, v in state.items() if k != CHECKSUMS}))
    for path, checksum in expected.items():
        if path not in found:
            raise ValueError(f"state has lost its entry state{path}, of which it has a checksum")
        if not isinstance(checksum, int) or found[path] != checksum:
            raise ValueError(
                f"state{path} is not what state_dict() returned: its checksum differs. The file is "
                f"damaged, or the entry was changed; without {CHECKSUMS!r} it is taken as it is"
            )


def _checksums(path: str, value: Any) -> Iterator[tuple[str, int]]:
    """Of what is in dictionaries and lists, by where it is."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _checksums(f"{path}[{key!r}]", entry)
    elif isinstance(value, list | tuple):
        for number, entry in enumerate(value):
            yield from _checksums(f"{path}[{number}]", entry)
    elif isinstance(value, Tensor):
        yield path, _of_tensor(value)
    elif value is None or isinstance(value, str | int | float):
        yield path, crc32(repr(value).encode(errors="surrogatepass"))


def _of_tensor(tensor: Tensor) -> int:
    kind = f"{tensor.dtype} {tuple(tensor.shape)}"
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return crc32(values.data, crc32(kind.encode()))
