"""The tutorials: notebooks kept as text, in the percent format of jupytext.

``python docs/notebooks.py`` runs them all and stores what they print (``*.outputs.json``) and draw
(``*.png``) beside them, for the site. To work on one in Jupyter: ``jupytext --to ipynb FILE``.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

TUTORIALS = Path(__file__).parent / "tutorials"

_MARKER = re.compile(r"^# %%.*$", re.MULTILINE)


@dataclass(frozen=True)
class Cell:
    """A cell of a notebook."""

    source: str
    is_text: bool
    line: int
    """Of the file, counted from 1, on which the source begins."""


def read_cells(notebook: str) -> list[Cell]:
    """The cells of a notebook in the percent format; what is before the first is left out."""
    markers = list(_MARKER.finditer(notebook))
    ends = [marker.start() for marker in markers[1:]] + [len(notebook)]
    cells = []
    for marker, end in zip(markers, ends, strict=True):
        source = notebook[marker.end() + 1 : end]
        is_text = "[markdown]" in marker.group()
        if is_text:
            source = re.sub(r"^# ?", "", source, flags=re.MULTILINE)
        line = notebook.count("\n", 0, marker.end()) + 2
        cells.append(Cell(source.strip("\n"), is_text, line))
    return cells


def run(path: Path, folder: Path) -> list[str]:
    """What each code cell of a notebook prints when they run, in order, in ``folder``."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    outputs = []
    with _inside(folder):
        for cell in read_cells(path.read_text(encoding="utf-8")):
            if cell.is_text:
                continue
            printed = io.StringIO()
            # Blank lines in front make the lines of a traceback those of the file.
            code = compile("\n" * (cell.line - 1) + cell.source, str(path), "exec")
            with contextlib.redirect_stdout(printed):
                exec(code, namespace)
            outputs.append(printed.getvalue())
    return outputs


def to_markdown(cells: Sequence[Cell], outputs: Sequence[str]) -> str:
    """A page of the site.

    Args:
        cells: of the notebook.
        outputs: what each code cell prints.

    Raises:
        ValueError: if there are not as many outputs as code cells.
    """
    n_code = sum(not cell.is_text for cell in cells)
    if len(outputs) != n_code:
        raise ValueError(f"outputs must be one for each of {n_code} code cells, got {len(outputs)}")
    remaining = iter(outputs)
    parts = []
    for cell in cells:
        if cell.is_text:
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        if output := next(remaining).rstrip():
            parts.append(f"```text\n{output}\n```")
    return "\n\n".join(parts) + "\n"


def outputs_of(path: Path) -> Path:
    """Where the outputs of a notebook are stored."""
    return path.with_suffix(".outputs.json")


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def main() -> None:
    """Run all tutorials and store what the site shows of them."""
    for path in sorted(TUTORIALS.glob("*.py")):
        outputs = run(path.resolve(), TUTORIALS)
        text = json.dumps(outputs, indent=1, ensure_ascii=False)
        outputs_of(path).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    import matplotlib

    matplotlib.use("Agg")
    main()
