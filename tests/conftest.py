import functools
from pathlib import Path

import matplotlib
import pytest
import torch
from avalanche.training.templates import BaseSGDTemplate

from avalanche_hnet import InMemoryPlugin

matplotlib.use("Agg")
torch.set_num_threads(1)

# Beside an installed package, without the repository, there is nothing that these could test.
has_repository = (Path(__file__).resolve().parents[1] / "experiments").exists()
collect_ignore = [] if has_repository else ["docs", "experiments", "timings"]


def pytest_addoption(parser):
    parser.addoption(
        "--in-memory",
        choices=["on", "off"],
        help="serve the data of all strategies from memory, or of none; default: as the tests ask",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "in_memory: about serving data from memory itself")


@pytest.fixture(autouse=True)
def _in_memory(request, monkeypatch):
    choice = request.config.getoption("--in-memory")
    if choice is None or request.node.get_closest_marker("in_memory"):
        return
    if choice == "off":
        for name in ("before_train_dataset_adaptation", "before_training_exp"):
            monkeypatch.setattr(InMemoryPlugin, name, lambda *_, **__: None)
        monkeypatch.setattr(InMemoryPlugin, "_replace_loader", lambda *_, **__: None)
        return
    original = BaseSGDTemplate.__init__

    @functools.wraps(original)
    def init(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if not any(isinstance(plugin, InMemoryPlugin) for plugin in self.plugins):
            self.plugins.insert(len(self.plugins) - 3, InMemoryPlugin())  # others keep theirs

    monkeypatch.setattr(BaseSGDTemplate, "__init__", init)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
