"""Every code block of README, CONTRIBUTING and the site runs as it stands."""

import re
import runpy
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import tyro
from sybil.document import Document
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_COMMANDS = [*PAGES, ROOT / "benchmarks" / "README.md"]


def name(path):
    return str(path.relative_to(ROOT))


def python_blocks(path):
    return list(Document.parse(str(path), PythonCodeBlockParser()).examples())


@pytest.mark.parametrize("path", [p for p in PAGES if python_blocks(p)], ids=name)
def test_python_runs(path, tmp_path, monkeypatch):
    """A page is one session, begun in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for block in python_blocks(path):
        block.evaluate()


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_block_names_its_language(path):
    fences = re.findall(r"^ *(?:```|~~~)(.*)$", path.read_text(), re.MULTILINE)
    assert all(fences[::2]), fences[::2]


def commands(path):
    """Calls of this repository's modules, in blocks and inline."""
    text = re.sub(r"\\\n", " ", path.read_text())
    inline = re.findall(r"(?<!`)`([^`]*python -m [^`]*)`(?!`)", text)
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    for line in [*(" ".join(code.split()) for code in inline), *lines]:
        for command in line.split("#")[0].split("&&"):
            words = shlex.split(command)
            if words[:2] == ["python", "-m"]:
                yield words[2], words[3:]


CALLS = sorted({(m, tuple(a)) for path in WITH_COMMANDS for m, a in commands(path)})


class Parsed(Exception):  # noqa: N818 - no error: the end of what is wanted
    """The command line was understood."""


@pytest.mark.parametrize(("module", "arguments"), CALLS, ids=lambda part: str(part))
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_commands_exist_and_take_these_arguments(module, arguments, tmp_path, monkeypatch):
    assert find_spec(module), module
    if module.split(".")[0] not in ("experiments", "benchmarks"):
        return
    parse = tyro.cli

    def parse_only(*args, **kwargs):
        parse(*args, **kwargs)
        raise Parsed

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tyro, "cli", parse_only)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(Parsed):
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert target.startswith("https://") or (ROOT / target).exists(), target
