"""Benchmarks on data that needs no download."""

from avalanche_hnet.benchmarks.digits import PermutedDigits, SplitDigits
from avalanche_hnet.benchmarks.regression import Regression1D

__all__ = ["PermutedDigits", "Regression1D", "SplitDigits"]
