"""The drawing of the rooms and its tables say what the import contracts say."""

import runpy
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "explanation" / "architecture.md"


def layers(container):
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (found,) = [
        [layer.split(" | ") for layer in contract["layers"]]
        for contract in settings["contracts"]
        if contract.get("containers") == [container]
    ]
    return found


@pytest.mark.parametrize(
    ("name", "container"), [("SHELL", "avalanche_hnet"), ("CORE", "avalanche_hnet.core")]
)
def test_rooms_are_drawn_as_they_are_held(name, container):
    drawn = runpy.run_path(str(ROOT / "docs" / "figures" / "rooms.py"))[name]
    held = layers(container)
    if name == "SHELL":
        assert held.pop() == ["core"]  # drawn as a house of its own
    assert drawn == held


def test_tables_name_all_rooms_and_their_files():
    rows = [line.split("|")[1:-1] for line in PAGE.read_text().splitlines() if line[:2] == "| "]
    entries = {row[0].strip(" `"): row[2] for row in rows if "`" in row[0]}
    rooms = {room for layer in layers("avalanche_hnet") for room in layer} - {"core"}
    rooms |= {f"core/{room}" for layer in layers("avalanche_hnet.core") for room in layer}
    assert entries.keys() == rooms
    for room, files in entries.items():
        for file in files.strip(" `").split("`, `"):
            assert (ROOT / "avalanche_hnet" / room / file).exists(), (room, file)
