"""The tutorials run, and the site has what they print and draw."""

import importlib
import json
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
TUTORIALS = sorted((DOCS / "tutorials").glob("*.py"))


@pytest.fixture
def notebooks(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)  # as MkDocs does for its hook
    return importlib.import_module("notebooks")


def pictures(text):
    return re.findall(r"\]\(([\w-]+\.png)\)", text)


def test_there_are_tutorials():
    assert len(TUTORIALS) >= 3


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorials_run(notebooks, path, tmp_path):
    outputs = notebooks.run(path, tmp_path)
    stored = json.loads(notebooks.outputs_of(path).read_text(encoding="utf-8"))
    # Numbers differ between machines, words do not.
    words = [re.findall(r"[A-Za-z]{2,}", output) for output in outputs]
    assert words == [re.findall(r"[A-Za-z]{2,}", output) for output in stored]
    shown = pictures(path.read_text(encoding="utf-8"))
    assert shown
    assert {p.name for p in tmp_path.glob("*.png")} == set(shown)
    assert all((DOCS / "tutorials" / name).exists() for name in shown)


NOTEBOOK = """# ---
# jupyter: settings
# ---

# %% [markdown]
# # A title
#
# Some *text*.

# %%
x = 2
print(x)

# %%
y = x + 1
"""


def test_cells_are_read_in_the_percent_format(notebooks):
    text, first, second = notebooks.read_cells(NOTEBOOK)
    assert (text.source, text.is_text) == ("# A title\n\nSome *text*.", True)
    assert (first.source, first.is_text) == ("x = 2\nprint(x)", False)
    assert second.source == "y = x + 1"
    for cell in (text, first, second):
        line = NOTEBOOK.splitlines()[cell.line - 1]
        assert line.removeprefix("# ") == cell.source.splitlines()[0]


def test_jupytext_reads_the_same_cells(notebooks):
    jupytext = pytest.importorskip("jupytext")
    for path in TUTORIALS:
        theirs = jupytext.read(path).cells
        ours = notebooks.read_cells(path.read_text(encoding="utf-8"))
        assert [cell.source for cell in ours] == [cell["source"] for cell in theirs]
        assert [cell.is_text for cell in ours] == [c["cell_type"] == "markdown" for c in theirs]


def test_pages_show_text_code_and_outputs(notebooks):
    cells = notebooks.read_cells(NOTEBOOK)
    page = notebooks.to_markdown(cells, ["2\n", ""])
    assert page == (
        "# A title\n\nSome *text*.\n\n"
        "```python\nx = 2\nprint(x)\n```\n\n```text\n2\n```\n\n"
        "```python\ny = x + 1\n```\n"
    )


def test_pages_need_the_outputs_of_all_code_cells(notebooks):
    with pytest.raises(ValueError, match="one for each of 2 code cells, got 1"):
        notebooks.to_markdown(notebooks.read_cells(NOTEBOOK), ["2\n"])


def test_errors_name_the_line_of_the_file(notebooks, tmp_path):
    path = tmp_path / "notebook.py"
    path.write_text(NOTEBOOK + "1 / 0\n")
    with pytest.raises(ZeroDivisionError) as error:
        notebooks.run(path, tmp_path)
    assert error.traceback[-1].lineno == NOTEBOOK.count("\n")
