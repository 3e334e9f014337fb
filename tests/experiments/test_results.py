import io

import pytest
from rich.console import Console

from experiments.common.comparison.results import Result, by_method
from experiments.common.comparison.tables import inference_table, scenarios_table, summary_table
from experiments.common.spread import mean_and_spread


def test_results_are_summarised_as_defined():
    result = Result("m", 0, [[90.0, 50.0, 50.0], [80.0, 95.0, 50.0], [70.0, 90.0, 98.0]])
    assert result.average == pytest.approx(86)
    assert result.forgetting == pytest.approx((20 + 5) / 2)
    assert Result("joint", 0, [[1.0, 3.0]]).forgetting is None
    assert mean_and_spread([1.0, 3.0]) == "2.00 ± 1.41"
    assert mean_and_spread([1.0]) == "1.00"
    assert list(by_method([result, Result("n", 0, [[1.0]]), result])) == ["m", "n"]


def test_table_of_many_experiences_is_whole_on_a_narrow_terminal():
    row = [90.0 + j / 10 for j in range(10)]
    results = [Result("prior-ewc", seed, [row]) for seed in range(2)]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(summary_table(results, "title"))
    printed = console.export_text()
    assert "prior-ewc" in printed
    assert "90.45 ± 0.00" in printed
    assert all(f"{value:.1f}" in printed for value in row)


def test_table_of_scenarios():
    results = [
        Result("m", 0, [[90.0]], "task"),
        Result("m", 1, [[80.0]], "task"),
        Result("m", 0, [[70.0, 50.0]], "class", [40.0, 42.0], [90.0, 91.0]),
        Result("n", 0, [[60.0]], "class"),
    ]
    table = scenarios_table(results, "title")
    assert [c.header for c in table.columns] == ["method", "task", "class"]
    assert [list(c.cells) for c in table.columns] == [
        ["m", "n"],
        ["85.00 ± 7.07", "-"],
        ["60.00", "60.00"],
    ]
    inferred = inference_table(results, "title")
    assert [list(c.cells) for c in inferred.columns] == [["m"], ["41.00"], ["90.50"]]
