"""What everything costs, as ratios of things run in turn: ``python -m benchmarks``."""
