"""Main networks with checkpoints train, and have a Fisher, as those without."""

import pytest
import torch

from avalanche_hnet import EWC, FixedTarget, Jacobian, ValuePreserving, diagonal_fisher
from avalanche_hnet.models import network_runner
from tests.support import checkpointed as targets
from tests.support.hypernet_strategies import adam, trained
from tests.support.hypernets import adapted, hyper_model
from tests.support.streams import task_stream, two_tasks_in_one

REGULARIZERS = {
    "none": lambda: None,
    "fixed target": lambda: FixedTarget(lookahead="optimizer", differentiable_lookahead=True),
    "value preserving": lambda: ValuePreserving(lookahead="sgd"),
    "jacobian": Jacobian,
    "ewc": EWC,
    "weighted": lambda: FixedTarget(fisher_weights=True, n_fisher=7),
}


def without_views(monkeypatch):
    monkeypatch.setattr(network_runner, "may_checkpoint", lambda network: False)


@pytest.mark.parametrize("regularizer", REGULARIZERS)
@pytest.mark.parametrize(
    "target", [targets.TwoBlocks, targets.ByParent, targets.Dropped, targets.Recurrent]
)
def test_training(target, regularizer, monkeypatch):
    """The first experience mixes two tasks."""
    experiences = [*task_stream(3).train_stream]
    stream = [two_tasks_in_one(*experiences[:2]), experiences[2]]

    def train(on):
        options = {"hypernet": {"generate": "*bias*"}} if regularizer == "none" else {}
        return trained(
            stream,
            REGULARIZERS[regularizer](),
            model=lambda: hyper_model(target(on), **options),
            optimizer=adam,
        )

    _, found = train(True)
    without_views(monkeypatch)
    _, expected = train(False)
    for a, b in zip(found, expected, strict=True):
        for name in a:  # the Fisher sums samples in another order
            atol = 1e-6 if regularizer == "ewc" else 0
            torch.testing.assert_close(a[name], b[name], rtol=0, atol=atol)


@pytest.mark.parametrize("generate", ["*", "*2.*", "block*"])
@pytest.mark.parametrize("target", [targets.TwoBlocks, targets.ByParent, targets.Listed])
def test_the_fisher(target, generate, monkeypatch):
    def fishers(on):
        torch.manual_seed(0)
        model = hyper_model(target(on), hypernet={"generate": generate}).double()
        adapted(model, task_stream(2).train_stream).eval()
        x, y = torch.randn(7, 6, dtype=torch.double), torch.arange(7) % 2
        batches = [(x, y, torch.full((7,), 1)), (x.sin(), y, torch.zeros(7, dtype=torch.long))]
        return (
            diagonal_fisher(model, batches, kind="exact"),
            diagonal_fisher(model.main_network(1), [(x, y)]),
        )

    found = fishers(True)
    without_views(monkeypatch)
    for a, b in zip(found, fishers(False), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-10, atol=1e-15)
        assert any(values.any() for values in a.values())
