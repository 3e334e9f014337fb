"""Benchmarks on data that needs no download."""

from avalanche_hnet.benchmarks.digits import PermutedDigits, SplitDigits

__all__ = ["PermutedDigits", "SplitDigits"]
