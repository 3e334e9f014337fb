import ast
from pathlib import Path

import avalanche_hnet

PACKAGE = Path(avalanche_hnet.__file__).parent


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_test_file_imports_from_another():
    """What several of them use is in tests/support."""
    files = list(Path(__file__).parent.rglob("*.py"))
    assert files
    for path in files:
        for name in imports(path):
            assert not any(part.startswith("test_") for part in name.split(".")), (path, name)


def test_public_names_exist_and_are_documented():
    for name in avalanche_hnet.__all__:
        assert getattr(avalanche_hnet, name).__doc__, name


def test_package_is_typed():
    assert (PACKAGE / "py.typed").exists()
