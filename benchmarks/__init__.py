"""Timings, as ratios of things run in turn in one process; run as ``python -m benchmarks.NAME``."""
