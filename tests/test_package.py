import ast
from pathlib import Path

import avalanche_hnet

PACKAGE = Path(avalanche_hnet.__file__).parent


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_core_is_plain_pytorch():
    files = list((PACKAGE / "core").rglob("*.py"))
    assert files
    for path in files:
        allowed = ("avalanche_hnet.core", "torch", "numpy")
        for name in imports(path):
            assert not name.startswith("avalanche") or name.startswith(allowed), (path, name)


def test_public_names_exist_and_are_documented():
    for name in avalanche_hnet.__all__:
        assert getattr(avalanche_hnet, name).__doc__, name


def test_package_is_typed():
    assert (PACKAGE / "py.typed").exists()
