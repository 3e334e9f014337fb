"""What the reference makes of the sources."""

import importlib.util
import inspect
from pathlib import Path

import pytest

from avalanche_hnet import TaskInferencePlugin

griffe = pytest.importorskip("griffe")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def package():
    spec = importlib.util.spec_from_file_location("docstrings", ROOT / "docs" / "docstrings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    extensions = griffe.load_extensions("dataclasses", module.Docstrings())
    return griffe.load("avalanche_hnet", search_paths=[str(ROOT)], extensions=extensions)


def test_a_method_with_the_arguments_of_another_class_shows_them(package):
    shown = package["plugins.task_inference.TaskInferencePlugin"].parameters
    called = [*inspect.signature(TaskInferencePlugin.__init__).parameters.values()]
    assert [p.name for p in shown] == [p.name for p in called]
    assert "options" not in {p.name for p in shown}
    for found, parameter in zip(shown, called, strict=True):
        keyword_only = found.kind is griffe.ParameterKind.keyword_only
        assert keyword_only == (parameter.kind is parameter.KEYWORD_ONLY)
        if parameter.default is not parameter.empty:
            assert found.default == repr(parameter.default)


FUNCTIONS = [
    "active_elements",
    "diagonal_fisher",
    "fresh_optimizer",
    "logits_of",
    "optimizer_step",
    "predict",
    "register_fisher_rule",
    "sgd_step",
    "benchmarks.PermutedDigits",
    "benchmarks.SplitDigits",
]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_say_what_they_return(package, name):
    sections = package[name].docstring.parse("google")
    assert griffe.DocstringSectionKind.returns in {section.kind for section in sections}
