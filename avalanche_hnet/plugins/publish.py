"""Values that plugins hand to every logger of a strategy's evaluator."""

from __future__ import annotations

import torch
from avalanche.evaluation.metric_results import AlternativeValues, MetricValue
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor

from avalanche_hnet.plugins.checkpointing.kinds import register_checkpoint_state

# A histogram needs no more values than this.
_MAX_VALUES = 2**16


class Histogram(AlternativeValues):
    """Many values of which loggers draw the distribution; text loggers print a summary."""

    def __init__(self, values: Tensor) -> None:
        flat = values.detach().flatten()
        step = max(1, -(-len(flat) // _MAX_VALUES))
        # A copy even on the CPU, where a view would keep all values alive.
        self.values = flat[::step].to("cpu", copy=True)
        super().__init__(self.values)

    def __str__(self) -> str:
        low, middle, high = torch.quantile(self.values.double(), torch.tensor([0, 0.5, 1]).double())
        return f"from {low:.3g} to {high:.3g}, median {middle:.3g}"


register_checkpoint_state(Histogram)


def publish(
    strategy: SupervisedTemplate, origin: object, name: str, value: float | Histogram
) -> None:
    """Give ``value`` to the strategy's evaluator, at the current training iteration.

    The evaluator passes it on to its loggers at the end of the current callback. It keeps a history
    of each name for good; of histograms, the latest one alone.
    """
    step = strategy.clock.train_iterations
    strategy.evaluator.publish_metric_value(MetricValue(origin, name, value, step))
    if isinstance(value, Histogram):
        for history in strategy.evaluator.all_metric_results.get(name, ()):
            del history[:-1]
