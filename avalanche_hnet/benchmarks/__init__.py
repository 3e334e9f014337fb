"""Benchmarks on data that needs no download."""

from avalanche_hnet.benchmarks.digits import PermutedDigits, SplitDigits
from avalanche_hnet.benchmarks.gaussian_mixture import GaussianMixture2D
from avalanche_hnet.benchmarks.regression import Regression1D
from avalanche_hnet.benchmarks.target_components import with_target_components

__all__ = [
    "GaussianMixture2D",
    "PermutedDigits",
    "Regression1D",
    "SplitDigits",
    "with_target_components",
]
