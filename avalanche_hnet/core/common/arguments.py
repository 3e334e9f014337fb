"""Checks of arguments, each with a message that names the argument and what would be right."""

from __future__ import annotations

from math import inf
from numbers import Integral, Real
from typing import Any, get_args

import torch


def integer(expected: str = "an integer", **arguments: Any) -> None:
    """Require integers, of Python or NumPy.

    Args:
        expected: what would be right, in words.
        arguments: values by name.

    Raises:
        TypeError: naming the argument, its value and what would be right.
    """
    for name, value in arguments.items():
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise TypeError(f"{name} must be {expected}, got {value!r}")


def number(expected: str = "a number", **arguments: Any) -> None:
    """Require real numbers, of Python or NumPy.

    Args:
        expected: what would be right, in words.
        arguments: values by name.

    Raises:
        TypeError: naming the argument, its value and what would be right.
    """
    for name, value in arguments.items():
        if not isinstance(value, Real):
            raise TypeError(f"{name} must be {expected}, got {value!r}")


def at_least(minimum: int, **arguments: Any) -> None:
    """Require integers of at least ``minimum``.

    Raises:
        TypeError, ValueError: naming the argument, its value and the minimum.
    """
    integer(f"an integer of at least {minimum}", **arguments)
    for name, value in arguments.items():
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")


def count_or_all(**arguments: Any) -> None:
    """Require integers of at least 1, or None for all.

    Raises:
        TypeError, ValueError: naming the argument and its value.
    """
    expected = "an integer of at least 1, or None for all"
    for name, value in arguments.items():
        if value is None:
            continue
        number(expected, **{name: value})
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be {expected}, got {value}")


def not_negative(**arguments: Any) -> None:
    """Require finite numbers that are not negative.

    Raises:
        TypeError, ValueError: naming the argument and its value.
    """
    number("a number of at least 0", **arguments)
    for name, value in arguments.items():
        if not 0 <= value < inf:
            raise ValueError(f"{name} must be at least 0 and finite, got {value}")


def positive(**arguments: Any) -> None:
    """Require finite numbers above 0.

    Raises:
        TypeError, ValueError: naming the argument and its value.
    """
    number("a positive number", **arguments)
    for name, value in arguments.items():
        if not 0 < value < inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")


def fraction(**arguments: Any) -> None:
    """Require numbers from 0 to 1.

    Raises:
        TypeError, ValueError: naming the argument and its value.
    """
    number("a number in [0, 1]", **arguments)
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


def generator_or_none(**arguments: Any) -> None:
    """Require random number generators of PyTorch, or None.

    Raises:
        TypeError: naming the argument and its value.
    """
    for name, value in arguments.items():
        if value is not None and not isinstance(value, torch.Generator):
            raise TypeError(f"{name} must be a torch.Generator or None, got {value!r}")
