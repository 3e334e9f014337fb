"""What is published of Kronecker products, read back from TensorBoard's files."""

import math

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import TensorboardLogger
from avalanche.training.plugins import EvaluationPlugin
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from avalanche_hnet import PriorEWCPlugin, kronecker_factors
from tests.support.kronecker import matrix_of
from tests.support.models import MultiHead, Recurrent
from tests.support.strategies import naive
from tests.support.streams import task_stream, tensors

LOSSES = ["NLL", "Prior", "EWC", "Loss"]
DISTRIBUTIONS = ["Fisher", "LogPrecision", "LogEigenvalues"]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A stream of three heads: the strategy, its plugin, each experience's Fisher, the events."""
    folder = tmp_path_factory.mktemp("tensorboard")
    torch.manual_seed(0)
    stream, model = task_stream(3).train_stream, MultiHead()
    plugin = PriorEWCPlugin(10.0, prior_variance=0.5, log_every=3, structure="kronecker")
    logger = TensorboardLogger(folder)
    evaluator = EvaluationPlugin(accuracy_metrics(epoch=True), loggers=[logger])
    strategy, fishers = naive(model, plugin, evaluator=evaluator), []
    for experience in stream:
        strategy.train(experience)
        fishers.append(kronecker_factors(model, [tensors(experience)]))
    logger.writer.flush()
    events = EventAccumulator(str(folder), size_guidance={"histograms": 0}).Reload()
    return strategy, plugin, fishers, events


def test_there_is_every_series_of_the_diagonal_and_the_eigenvalues(published):
    *_, events = published
    tags = events.Tags()
    ends = [f"{n}{end}" for n in DISTRIBUTIONS for end in ("Min", "Max")]
    names = {*LOSSES, *ends, "FisherSeconds", "FisherSamples"}
    ours = {tag for tag in tags["scalars"] if tag.startswith("PriorEWC/")}
    assert ours == {f"PriorEWC/{name}" for name in names}
    assert {f"PriorEWC/{name}" for name in DISTRIBUTIONS} == {*tags["histograms"]}
    assert [e.value for e in events.Scalars("PriorEWC/FisherSamples")] == [20, 20, 20]


def test_losses_add_up(published):
    *_, events = published
    series = [events.Scalars(f"PriorEWC/{name}") for name in LOSSES]
    for values in series:
        assert [e.step for e in values] == [0, 3, 6, 8, 11, 14, 16, 19, 22]
    for nll, prior, ewc, total in zip(*series, strict=True):
        assert math.isclose(nll.value + prior.value + ewc.value, total.value, rel_tol=1e-5)
    assert [e.value > 0 for e in series[2]] == [False] * 4 + [True] * 2 + [False] + [True] * 2


def test_the_last_histograms_are_those_of_the_posterior(published):
    strategy, plugin, fishers, events = published
    posterior = plugin.posterior
    head = "output.head.classifiers.2.classifier"
    active = [n for n in posterior.mean if "classifiers" not in n or n.startswith(head)]
    fisher = fishers[-1].whole_diagonal()
    eigenvalues = [
        torch.linalg.eigvalsh(sum(matrix_of(p).double() for p in layer.products)) + 2
        for layer in posterior._parts.layers.values()
    ]
    expected = {
        "Fisher": torch.cat([fisher[n].flatten() for n in active]),
        "LogPrecision": torch.cat([posterior.precision[n].flatten() for n in active]).log(),
        "LogEigenvalues": torch.cat(eigenvalues).log(),
    }
    assert len(expected["LogEigenvalues"]) == sum(p.numel() for p in strategy.model.parameters())
    for name, values in expected.items():
        histogram = events.Histograms(f"PriorEWC/{name}")[-1].histogram_value
        assert len(events.Histograms(f"PriorEWC/{name}")) == 3
        assert histogram.num == len(values)
        close = {"rel_tol": 1e-4, "abs_tol": 1e-5}
        assert math.isclose(histogram.min, values.min(), **close)
        assert math.isclose(histogram.max, values.max(), **close)
        assert math.isclose(histogram.sum, values.sum(), **close)
        for end, value in (("Min", values.min()), ("Max", values.max())):
            scalar = events.Scalars(f"PriorEWC/{name}{end}")[-1].value
            assert math.isclose(scalar, value, **close)


def test_parameters_of_no_layer_have_no_eigenvalues():
    stream = task_stream(1, n_in=20, n_classes=3, task_labels=[0]).train_stream
    model = torch.nn.Sequential(torch.nn.Unflatten(1, (4, 5)), Recurrent())
    plugin = PriorEWCPlugin(structure="kronecker")
    strategy = naive(model, plugin)
    strategy.train(stream[0])
    metrics = strategy.evaluator.get_all_metrics()
    (histogram,) = metrics["PriorEWC/LogEigenvalues"][1]
    of_layers = [p.numel() for n, p in model.named_parameters() if "lstm" not in n]
    assert len(histogram.values) == sum(of_layers)


def test_a_diagonal_posterior_has_no_eigenvalues():
    strategy = naive(MultiHead(), PriorEWCPlugin())
    strategy.train(task_stream(1).train_stream[0])
    assert "PriorEWC/LogEigenvalues" not in strategy.evaluator.get_all_metrics()
