"""Metrics for Avalanche's ``EvaluationPlugin``."""

from avalanche_hnet.metrics.mse import mse_metrics
from avalanche_hnet.metrics.task_inference import task_inference_metrics

__all__ = ["mse_metrics", "task_inference_metrics"]
