"""Streams on data that need no download: digits, modes in the plane, one-dimensional functions.

``with_target_components`` lets other regression benchmarks be learned by models that ask for
classes.
"""

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
