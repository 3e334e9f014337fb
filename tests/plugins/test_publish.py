import pytest
import torch

from avalanche_hnet.plugins.publish import Histogram


def test_histogram_is_bounded_and_reads_well():
    histogram = Histogram(torch.linspace(0, 1, 1_000_001))
    assert len(histogram.values) <= 2**16
    assert str(histogram) == "from 0 to 1, median 0.5"


@pytest.mark.parametrize("n_values", [0, 5, 2**16, 2**16 + 1, 1_000_001])
def test_memory_is_bounded_too(n_values):
    """What is kept is no view of the layer's values."""
    values = torch.rand(n_values)
    kept = [Histogram(values).values, *(t for t in vars(Histogram(values)).values())]
    for tensor in (t for t in kept if isinstance(t, torch.Tensor)):
        assert tensor.untyped_storage().nbytes() <= 4 * 2**16
        assert tensor.untyped_storage().nbytes() == 4 * len(tensor)
        assert not n_values or tensor.data_ptr() != values.data_ptr()
