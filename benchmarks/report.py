"""The report: a table, the same in JSON and Markdown, and a plot."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.rows import Row

HEADER = ("", "threads", "cost", "compared with", "times", "minimum", "maximum", "wanted")


def machine() -> dict[str, str | int]:
    """What the figures depend on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0].partition(":")[2].strip() if names else model
    facts: dict[str, str | int] = {
        "date": f"{date.today():%Y-%m-%d}",
        "processor": f"{model}, {torch.backends.cpu.get_cpu_capability()}",
        "cores": os.cpu_count() or 1,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "avalanche-lib", "hypnettorch")},
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table."""
    digits = 3 if row.cost < 1 else 1 if row.cost < 1000 else 0
    wanted = ""
    if row.limit is not None:
        wanted = f"{row.limit}, {'met' if row.limit.holds(row.ratio) else 'missed'}"
    return (
        row.name,
        str(row.threads),
        f"{row.cost:.{digits}f} {row.unit}",
        row.reference,
        *(f"{value:.2f}" for value in (row.ratio, min(row.ratios), max(row.ratios))),
        wanted,
    )


def table(rows: Sequence[Row]) -> Table:
    """For the terminal."""
    shown = Table(title="median, minimum and maximum over rounds")
    for name in HEADER:
        shown.add_column(name, justify="left" if name in ("", "compared with") else "right")
    last = None
    for row in rows:
        if row.section != last:
            shown.add_section()
            shown.add_row(f"[bold]{row.section}")
        last = row.section
        shown.add_row(*cells(row))
    return shown


def markdown(rows: Sequence[Row]) -> str:
    """For the README."""
    lines = [f"| {' | '.join(HEADER)} |", "|---|--:|--:|---|--:|--:|--:|---|"]
    last = None
    for row in rows:
        if row.section != last:
            lines.append(f"| **{row.section}** | | | | | | | |")
        last = row.section
        lines.append(f"| {' | '.join(cells(row))} |")
    return "\n".join(lines) + "\n"


def write(rows: Sequence[Row], folder: Path) -> None:
    """``report.json``, ``table.md`` and ``ratios.png``."""
    content = {"machine": machine(), "rows": [{**asdict(r), "ratio": r.ratio} for r in rows]}
    (folder / "report.json").write_text(json.dumps(content, indent=1, ensure_ascii=False))
    (folder / "table.md").write_text(markdown(rows), encoding="utf-8")
    draw(rows, folder / "ratios.png")


def draw(rows: Sequence[Row], path: Path) -> None:
    """All ratios, on a logarithmic axis, with what is wanted of them."""
    figure = Figure(figsize=(11, 1 + 0.26 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    sections = list(dict.fromkeys(row.section for row in rows))
    for position, row in enumerate(rows):
        colour = f"C{sections.index(row.section)}"
        axes.plot([min(row.ratios), max(row.ratios)], [position] * 2, color=colour, linewidth=1)
        axes.plot(row.ratio, position, "o", color=colour, markersize=5)
        if row.limit is not None:
            marker = 5 if row.limit.at_least else 4  # carets to the right and to the left
            axes.plot(row.limit.value, position, marker=marker, color="black", markersize=7)
    axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(
        "times the cost of what it is compared with (a caret: the limit that is wanted)"
    )
    figure.savefig(path, dpi=120)
