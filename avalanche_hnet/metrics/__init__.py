"""Metrics for Avalanche's ``EvaluationPlugin``.

``mse`` has the mean squared error of regressions, ``task_inference`` how often the task of a
sample is inferred correctly.
"""

from avalanche_hnet.metrics.mse import mse_metrics
from avalanche_hnet.metrics.task_inference import task_inference_metrics

__all__ = ["mse_metrics", "task_inference_metrics"]
