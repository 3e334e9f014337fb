"""A process is killed at random moments, and the script started again."""

import random
from collections import Counter

import pytest
import torch

from tests.support.checkpoint_runs import assert_same, make, result, script
from tests.support.killed_script import PHASES, Processes, Script

pytestmark = pytest.mark.filterwarnings("ignore:No loggers")


@pytest.fixture(scope="module")
def processes():
    server = Processes()
    yield server
    server.close()


def ends_alike(processes, method, folder, moments):
    """Kill it at these moments, and let it end; the phases that it was killed in."""
    process, phases = Script(processes, method, folder), Counter()
    for phase, seconds in moments:
        died_in = process.killed(phase, seconds)
        if died_in is None:  # it came to its end: from the start again
            break
        phases[died_in] += 1
    process.finish()
    # The same plugins as there, and nothing else.
    undisturbed = make(method)
    expected = result(undisturbed, script(undisturbed, method))
    actual = torch.load(process.out, weights_only=False)  # our own result, with its metrics
    assert_same(expected, actual)
    return phases


@pytest.mark.timeout(300)
def test_five_kills(processes, tmp_path):
    draw = random.Random(0)
    moments = [(phase, draw.uniform(0, 0.02)) for phase in "TFEC"] + [("T", 0.03)]
    phases, number = Counter(), 0
    while (n_kills := sum(phases.values())) < 5:  # a run that ends too early is begun again
        phases += ends_alike(processes, "diagonal", tmp_path / str(number), moments[n_kills:])
        number += 1
    assert sum(phases.values()) == 5


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("method", ["diagonal", "kronecker", "hypernet"])
def test_ten_kills_of_each_method(processes, tmp_path, method):
    """Ten of each method, spread over the phases; five of a run, then a run from the start."""
    possible = PHASES.replace("F", "" if method == "hypernet" else "F")
    draw, phases, number = random.Random(1), Counter(), 0
    while sum(phases.values()) < 10:
        wanted = [min(possible, key=lambda p: phases[p]), *draw.choices(possible, k=4)]
        moments = [(phase, draw.uniform(0, 0.03)) for phase in wanted]
        phases += ends_alike(processes, method, tmp_path / str(number), moments)
        number += 1
    print(method, dict(phases), number)
    assert all(phases[phase] for phase in "TEC")
