"""The stream that the experiments' networks and strategies are made for."""

from avalanche_hnet.benchmarks import SplitDigits


def class_stream():
    return SplitDigits(5, seed=0, return_task_id=True)
