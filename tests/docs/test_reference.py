"""The reference has an entry for every public name."""

import re
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"
MODULES = ["avalanche_hnet", "avalanche_hnet.benchmarks", "avalanche_hnet.metrics"]


def entries():
    pages = [path.read_text() for path in REFERENCE.glob("*.md")]
    return [name for page in pages for name in re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE)]


def test_every_public_name_has_one_entry():
    public = {f"{m}.{name}" for m in MODULES for name in import_module(m).__all__}
    public.add("avalanche_hnet.EWC")  # which a star import leaves out
    listed = Counter(entries())
    assert public - listed.keys() == set()
    assert max(listed.values()) == 1


@pytest.mark.parametrize("entry", entries())
def test_entries_are_importable_and_documented(entry):
    module, _, name = entry.rpartition(".")
    assert hasattr(import_module(module), name)
    assert getattr(import_module(module), name).__doc__
