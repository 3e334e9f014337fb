"""The folder of a run, and what is said of it."""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def make_run_folder(output: Path, name: str) -> Path:
    """Make a folder with a name, the time and, if runs start in the same second, a number."""
    first = folder = output / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    number = 1
    while True:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
            folder = first.with_name(f"{first.name}-{number}")
        else:
            return folder


def write_json(content: Any, path: Path) -> None:
    """Write for people: indented, and with what JSON does not know as text."""
    write_text(json.dumps(content, indent=2, default=str) + "\n", path)


def write_text(text: str, path: Path) -> None:
    """Write all of a file, or leave the one that is there.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    beside = path.with_name(f".{path.name}.new")
    try:
        try:
            with beside.open("w", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def versions() -> dict[str, str]:
    """Of the packages that results depend on."""
    return {name: version(name) for name in ("avalanche-hnet", "avalanche-lib", "torch")}


def say_finished(part: str) -> None:
    """Print a line on standard error, unless that is a terminal, where a progress bar moves."""
    if not sys.stderr.isatty():
        print(part, file=sys.stderr, flush=True)


def print_report(folder: Path, *tables: Table, contents: str = "Everything is") -> None:
    """Print tables, and where everything is."""
    console = Console()
    for table in tables:
        console.print(table)
    console.print(f"{contents} in {folder.resolve()}", soft_wrap=True)
