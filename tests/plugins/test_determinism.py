"""One seed makes a run, whatever serves the data, logs and evaluates."""

import functools

import pytest

from tests.support import determinism as table

learned = functools.cache(table.run)


@pytest.mark.in_memory
@pytest.mark.filterwarnings("ignore:num_workers=2 ignored")
@pytest.mark.parametrize("method", table.METHODS)
@pytest.mark.parametrize("pair", table.PAIRS)
def test_pairs_are_as_the_page_says(pair, method):
    run = table.run if table.PAIRS[pair] == table.PLAIN else learned  # not the very same run
    same = table.equal(learned(method, table.PLAIN), run(method, table.PAIRS[pair]))
    found = table.EQUAL if same else table.OTHER
    assert table.rows_of_page()[pair, method] == found, (
        "write the page anew: python -m tests.support.determinism"
    )
    assert same == (not pair.endswith("without that plugin"))


def test_the_page_has_nothing_else():
    assert set(table.rows_of_page()) == {(p, m) for p in table.PAIRS for m in table.METHODS}
