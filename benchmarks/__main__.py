"""Measure everything and print one table; write it as JSON, Markdown and a plot."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import tyro
from rich.console import Console
from tqdm import tqdm

from benchmarks import (
    checkpoints,
    fisher,
    hypernets,
    inference,
    memory,
    penalties,
    regularizers,
    streams,
)
from benchmarks.report import machine, table, write
from benchmarks.rows import Row
from experiments.common.run_folder import make_run_folder

Section = Literal[
    "streams",
    "penalties",
    "hypernets",
    "fisher",
    "regularizers",
    "memory",
    "inference",
    "checkpoints",
]
SECTIONS: dict[Section, Callable[[int], list[Row]]] = {
    "streams": streams.rows,
    "penalties": penalties.rows,
    "hypernets": hypernets.rows,
    "fisher": fisher.rows,
    "regularizers": regularizers.rows,
    "memory": memory.rows,
    "inference": inference.rows,
    "checkpoints": checkpoints.rows,
}


@dataclass(frozen=True)
class Benchmark:
    """What to measure."""

    only: tuple[Section, ...] = get_args(Section)
    """Parts of the report."""
    repeats: int = 5
    """Rounds, of which the table shows median, minimum and maximum (some parts take more)."""
    output: Path = Path("runs")
    """Folder in which the run makes a folder of its own."""

    def __post_init__(self) -> None:
        """Refuse what no run could use."""
        if self.repeats < 1:
            raise ValueError(f"repeats must be at least 1, got {self.repeats}")
        if not self.only:
            raise ValueError("only must name at least one part, got none")


def main(options: Benchmark) -> Path:
    """Measure and report; return the run's folder."""
    folder = make_run_folder(options.output, "benchmarks")
    console = Console()
    if not console.is_terminal:
        console = Console(width=240)  # of a log file, whose lines may be long
    warnings.filterwarnings("ignore", "No loggers specified")
    start = time.perf_counter()
    rows: list[Row] = []
    for section in tqdm(options.only, disable=None, leave=False):
        rows += SECTIONS[section](options.repeats)
    write(rows, folder)
    console.print(table(rows))
    console.print(", ".join(f"{name} {value}" for name, value in machine().items()))
    minutes = (time.perf_counter() - start) / 60
    console.print(f"{minutes:.1f} minutes. Everything is in {folder.resolve()}", soft_wrap=True)
    return folder


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
