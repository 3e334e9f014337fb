"""Checks of arguments that several classes share."""

from __future__ import annotations

from numbers import Real
from typing import Any, get_args


def at_least(minimum: int, **arguments: Any) -> None:
    """Require integers of at least ``minimum``.

    Raises:
        TypeError, ValueError: naming the argument, its value and the minimum.
    """
    for name, value in arguments.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an integer of at least {minimum}, got {value!r}")
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")


def not_negative(**arguments: float) -> None:
    """Require finite numbers that are not negative.

    Raises:
        TypeError, ValueError: naming the argument and its value.
    """
    for name, value in arguments.items():
        if not isinstance(value, Real):
            raise TypeError(f"{name} must be a number of at least 0, got {value!r}")
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be at least 0 and finite, got {value}")


def fraction(**arguments: float) -> None:
    """Require numbers from 0 to 1.

    Raises:
        ValueError: naming the argument and its value.
    """
    for name, value in arguments.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {value}")


def one_of(kind: Any, **arguments: Any) -> None:
    """Require values of a ``Literal`` type.

    Raises:
        ValueError: naming the argument, its value and the choices.
    """
    for name, value in arguments.items():
        if value not in get_args(kind):
            raise ValueError(f"{name} must be one of {get_args(kind)}, got {value!r}")
