"""The command lines are what they were; ``tests/support/command_lines.txt`` holds them.

Where a change is meant, write the file anew: ``python -m tests.experiments.test_command_lines``.
"""

import runpy
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints
from unittest.mock import patch

import pytest

STORED = Path(__file__).parents[1] / "support" / "command_lines.txt"
COMMANDS = (
    "experiments.split_digits",
    "experiments.split_mnist",
    "experiments.permuted_mnist",
    "experiments.gaussian_mixture",
    "experiments.toy_regression",
    "experiments.regression_uncertainty",
    "experiments.posterior_prediction",
    "benchmarks",
)


class _StopError(Exception):
    """Ends a command before it runs."""


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("command", COMMANDS)
def test_command_line_is_what_it_was(command):
    stored = [line for line in STORED.read_text().splitlines() if line.startswith(f"{command} ")]
    assert command_line(command) == stored


def command_line(command: str) -> list[str]:
    """One line for each option of ``python -m command``: name, choices and default."""
    lines = []

    def record(settings: type, **_: Any) -> None:
        lines.extend(f"{command} {option}" for option in options_of(settings))
        raise _StopError

    with patch("tyro.cli", record), pytest.raises(_StopError):
        runpy.run_module(command, run_name="__main__", alter_sys=True)
    return lines


def options_of(settings: Any, prefix: str = "--") -> Iterator[str]:
    """The options of a dataclass with defaults, or of an object of one, those inside included."""
    types = get_type_hints(settings if isinstance(settings, type) else type(settings))
    for field in fields(settings):
        default = default_of(settings, field)
        name = prefix + field.name.replace("_", "-")
        if is_dataclass(default):
            yield from options_of(default, f"{name}.")
        else:
            shown = str(default) if isinstance(default, Path) else repr(default)
            if field.name == "device":
                shown = "a GPU where there is one"
            yield " ".join([name, *choices(types[field.name]), f"= {shown}"])


def default_of(settings, field):
    if not isinstance(settings, type):
        return getattr(settings, field.name)
    return field.default if field.default_factory is MISSING else field.default_factory()


def choices(kind: Any) -> list[str]:
    """What an option may be: the names of types and the values of literals in its annotation."""
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    if get_args(kind):
        return [name for part in get_args(kind) for name in choices(part)]
    return ["..." if kind is ... else kind.__name__]


if __name__ == "__main__":
    STORED.write_text("".join(f"{line}\n" for c in COMMANDS for line in command_line(c)))
