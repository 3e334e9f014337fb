"""Hook of MkDocs: makes a page of each tutorial, and keeps scripts out of the site."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from notebooks import outputs_of, read_cells, to_markdown  # MkDocs looks beside this file, too


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Replace each ``tutorials/NAME.py`` by the page ``tutorials/NAME.md``."""
    for file in list(files):
        path = PurePosixPath(file.src_uri)
        if path.suffix not in (".py", ".pyc", ".json"):
            continue
        files.remove(file)
        if path.match("tutorials/*.py"):
            page = File.generated(
                config, str(path.with_suffix(".md")), content=_page(Path(str(file.abs_src_path)))
            )
            page.edit_uri = file.edit_uri
            files.append(page)
    return files


def _page(notebook: Path) -> str:
    cells = read_cells(notebook.read_text(encoding="utf-8"))
    outputs = json.loads(outputs_of(notebook).read_text(encoding="utf-8"))
    return to_markdown(cells, outputs)
