"""Checks of a state's entries, each with a message that names the entry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from avalanche_hnet.core.common.checksums import CHECKSUMS

KEPT = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""Types of the values that a state keeps; those of 16 bits come from networks of that type."""


def check_keys(where: str, state: Any, keys: Iterable[str], optional: Iterable[str] = ()) -> None:
    """Require a dictionary with certain keys; checksums may be there or not.

    Args:
        where: what it is called.
        state: to be loaded.
        keys: that it must have.
        optional: those among ``keys`` that it may lack.

    Raises:
        ValueError: naming what is there instead.
    """
    expected, may_lack = {*keys} | {CHECKSUMS}, {*optional, CHECKSUMS}
    if not isinstance(state, Mapping):
        raise ValueError(
            f"{where} must be a dictionary with the keys {sorted(expected - may_lack)}, got "
            f"{type(state).__name__}"
        )
    if state.keys() | may_lack != expected:
        raise ValueError(
            f"{where} must have the keys {sorted(expected - may_lack)}, got "
            f"{sorted(state, key=str)}"
        )


def check_tensor(
    where: str,
    value: Any,
    shape: Sequence[int] | None = None,
    dtypes: Sequence[torch.dtype] = KEPT,
) -> Tensor:
    """Require a tensor of one of some types, finite, and of a shape if there is one to have.

    Raises:
        ValueError: naming what is there instead.
    """
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
        raise ValueError(f"{where} must be a tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        names = " or ".join(map(str, dtypes))
        raise ValueError(f"{where} must be of the type {names}, got {value.dtype}")
    if shape is not None and tuple(value.shape) != tuple(shape):
        raise ValueError(f"{where} must be of the shape {tuple(shape)}, got {tuple(value.shape)}")
    if not value.isfinite().all():
        raise ValueError(f"{where} must be finite, but has NaN or infinite elements")
    return value


def check_not_negative(where: str, value: Tensor) -> None:
    """Require values of at least zero.

    Raises:
        ValueError: naming the smallest one.
    """
    if value.numel() and value.min() < 0:
        raise ValueError(f"{where} must not be negative, but has {float(value.min()):.3g}")


def check_tensors(
    where: str, value: Any, dtypes: Sequence[torch.dtype] = KEPT
) -> Mapping[str, Tensor]:
    """Require a dictionary of finite tensors by name.

    Raises:
        ValueError: naming what is there instead.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a dictionary of tensors, got {type(value).__name__}")
    for name, tensor in value.items():
        if not isinstance(name, str):
            raise ValueError(f"{where} must have names as keys, got {name!r}")
        check_tensor(f"{where}[{name!r}]", tensor, dtypes=dtypes)
    return value
