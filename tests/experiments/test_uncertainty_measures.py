import numpy as np
import pytest

from avalanche_hnet.benchmarks import Regression1D
from experiments.common.uncertainty.measures import evaluate
from tests.support.uncertainty import BENCHMARK, prediction


def test_band_is_of_both_kinds_of_uncertainty():
    """An error that grows as x leaves the band 2 √(0.4² + 0.3²) = 1 in the middle of [0, 2]."""
    found = evaluate(BENCHMARK, 0, prediction(lambda x: x, 0.4))
    assert found.coverage == pytest.approx(100 * 201 / 401)
    assert found.rmse == pytest.approx((4 / 3) ** 0.5, rel=0.01)
    assert found.epistemic_std == pytest.approx(0.4)
    assert (found.ratio, found.ratio_gaps, found.ratio_beyond) == pytest.approx((1, 1, 1))


def test_widths_in_the_gap_and_beyond_are_told_apart():
    def width(x):
        inside = ((x >= 0) & (x <= 2)) | ((x >= 3) & (x <= 5))
        return np.where(inside, 0.5, np.where((x > 2) & (x < 3), 1.0, 5.0))

    found = evaluate(BENCHMARK, 1, prediction(0, width))
    assert found.task == 1
    assert found.coverage == 100
    assert found.ratio_gaps == pytest.approx(2)
    assert found.ratio_beyond == pytest.approx(10)
    assert found.ratio == pytest.approx((1 * 2 + 4 * 10) / 5, rel=0.01)  # over [-2, 7]


def test_width_is_that_of_the_task():
    """Of task 1, whose domain is not the wide one."""
    found = evaluate(BENCHMARK, 1, prediction(0, lambda x: np.where(x <= 2, 4.0, 1.0)))
    assert found.epistemic_std == pytest.approx(1)


def test_no_ratio_without_epistemic_uncertainty():
    found = evaluate(BENCHMARK, 0, prediction(0, 0.0))
    assert (found.ratio, found.ratio_gaps, found.ratio_beyond) == (None, None, None)


def test_no_ratio_in_gaps_where_there_are_none():
    joined = Regression1D([np.zeros_like] * 2, [(0, 2), (2, 4)])
    found = evaluate(joined, 0, prediction(0, 1.0))
    assert found.ratio_gaps is None
    assert found.ratio == pytest.approx(1)
