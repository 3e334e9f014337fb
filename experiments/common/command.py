"""An experiment as a command."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import tyro

OptionsT = TypeVar("OptionsT")


def run_command(
    main: Callable[[OptionsT], Any], options: type[OptionsT], description: str | None
) -> None:
    """Run an experiment with the options of the command line.

    Where the disk is full or may not be written to, it ends with a sentence, and what is finished
    stays.
    """
    chosen = tyro.cli(options, description=description)
    try:
        main(chosen)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        sys.exit(
            f"{error.strerror or error}{where}. What is finished stays; the same command with "
            "--run-folder and the run's folder goes on from there."
        )
