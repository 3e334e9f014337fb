"""What the plugins publish to Avalanche's loggers."""

from avalanche_hnet.metrics.mse import mse_metrics

__all__ = ["mse_metrics"]
