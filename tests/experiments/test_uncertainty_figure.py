import numpy as np

from experiments.common.uncertainty.figure import Panel, draw_uncertainty
from tests.support.uncertainty import BENCHMARK, prediction


def bounds(collection):
    """Lower and upper edge of a band over a constant."""
    y = collection.get_paths()[0].vertices[:, 1]
    return round(float(y.min()), 6), round(float(y.max()), 6)


def test_bands_of_the_picture():
    x = np.linspace(-2, 7, 50)
    panels = [Panel(str(t), [t], x, prediction(0.5, 0.4)(t, x)) for t in (0, 1)]
    figure = draw_uncertainty(BENCHMARK, panels, "title")
    assert figure.get_suptitle() == "title"
    assert [axes.get_title() for axes in figure.axes] == ["0", "1"]
    for task, axes in enumerate(figure.axes):
        epistemic, upper, lower = axes.collections
        assert bounds(epistemic) == (-0.3, 1.3)
        assert bounds(upper) == (1.3, 1.5)  # 0.5 + 2 √(0.4² + 0.3²)
        assert bounds(lower) == (-0.5, -0.3)
        [span] = axes.patches
        assert (span.get_x(), span.get_width()) == (BENCHMARK.domains[task][0], 2)
        assert axes.get_xlim() == (-2, 7)
