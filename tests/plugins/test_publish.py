import pytest
import torch
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin

from avalanche_hnet.plugins.publish import Histogram, publish
from tests.support.models import mlp
from tests.support.strategies import naive


def test_histogram_is_bounded_and_reads_well():
    histogram = Histogram(torch.linspace(0, 1, 1_000_001))
    assert len(histogram.values) <= 2**16
    assert str(histogram) == "from 0 to 1, median 0.5"


@pytest.mark.parametrize("n_values", [0, 5, 2**16, 2**16 + 1, 1_000_001])
def test_memory_is_bounded_too(n_values):
    """What is kept is no view of the layer's values."""
    values = torch.rand(n_values)
    kept = [Histogram(values).values, *(t for t in vars(Histogram(values)).values())]
    for tensor in (t for t in kept if isinstance(t, torch.Tensor)):
        assert tensor.untyped_storage().nbytes() <= 4 * 2**16
        assert tensor.untyped_storage().nbytes() == 4 * len(tensor)
        assert not n_values or tensor.data_ptr() != values.data_ptr()


@pytest.mark.parametrize("collect_all", [True, False])
def test_of_histograms_the_history_keeps_the_latest(collect_all):
    evaluator = EvaluationPlugin(loggers=[Remembers()], collect_all=collect_all)
    strategy = naive(mlp(), evaluator=evaluator)
    for step in range(3):
        strategy.clock.train_iterations = step
        publish(strategy, None, "Number", float(step))
        publish(strategy, None, "Many", Histogram(torch.full((4,), float(step))))
    evaluator.before_training(strategy)
    (logger,) = evaluator.loggers
    assert [value.x_plot for value in logger.values if value.name == "Many"] == [0, 1, 2]
    assert evaluator.get_last_metrics()["Many"].values[0] == 2
    history = evaluator.get_all_metrics()
    assert bool(history) == collect_all
    if collect_all:
        assert history["Number"] == ([0, 1, 2], [0.0, 1.0, 2.0])
        assert history["Many"][0] == [2]
        assert history["Many"][1] == [evaluator.get_last_metrics()["Many"]]


class Remembers(BaseLogger):
    def __init__(self):
        self.values = []

    def log_metrics(self, values):
        self.values += values
