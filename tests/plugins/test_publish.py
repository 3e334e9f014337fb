import torch

from avalanche_hnet.plugins.publish import Histogram


def test_histogram_is_bounded_and_reads_well():
    histogram = Histogram(torch.linspace(0, 1, 1_000_001))
    assert len(histogram.values) <= 2**16
    assert str(histogram) == "from 0 to 1, median 0.5"
