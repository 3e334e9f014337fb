"""After many experiences nothing is left but what the method needs, and none takes longer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.long_runs import KINDS, Left, slope

ROOT = Path(__file__).resolve().parents[1]
# A task of its own is a new parameter for the model, and in heads four, with what protects them.
SHARED = [kind for kind, (_, by_task) in KINDS.items() if not by_task]
TENSORS = {"Naive, heads": 4, "diagonal, heads": 12, "Kronecker, heads": 20, "hypernetwork": 2}
BYTES = {"Naive, heads": 76, "diagonal, heads": 310, "Kronecker, heads": 1106, "hypernetwork": 60}


def measured(kinds, *numbers):
    """By kind, times and what is left, of a process where nothing else has left anything."""
    command = [sys.executable, "-m", "tests.support.long_runs", *kinds, *map(str, numbers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def short():
    """From where the log of a hypernetwork's weights follows no more tasks, at 32."""
    return measured(KINDS, 36, 44)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_over(kind, short):
    _, left = short[kind]
    first, last = Left(**left["36"]), Left(**left["44"])
    assert last.n_graphs == 0
    assert last.n_hooks == first.n_hooks
    assert last.n_files == first.n_files
    assert last.n_tensors - first.n_tensors == 8 * TENSORS.get(kind, 0)
    assert last.tensor_bytes - first.tensor_bytes <= 8 * BYTES.get(kind, 0)
    if kind in SHARED:
        assert last.n_calls == first.n_calls
    if kind == "hypernetwork":  # passes of PyTorch and Avalanche over its parameters
        assert last.n_calls - first.n_calls <= 8 * 175


def test_a_slope_is_found_with_its_error():
    noise = np.random.default_rng(0).normal(size=400)
    values = 5 + 0.1 * np.arange(400) + noise
    values[7] = np.nan
    found, error = slope(values)
    assert found == pytest.approx(0.1, abs=3 * error)
    assert error == pytest.approx(np.sqrt(12 / 400**3), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_five_hundred_experiences(kind):
    times, left = measured([kind], 50, 500)[kind]
    resident = {number: of["resident_bytes"] for number, of in left.items()}
    found, error = slope(times[50:])
    print(f"{kind}: {resident}, {found:.2e} ± {error:.0e} of {np.nanmean(times[50:]):.3g}")
    assert resident["500"] <= 1.1 * resident["50"]
    if kind in SHARED:
        assert left["50"]["n_calls"] == left["500"]["n_calls"]
        assert left["50"]["n_tensors"] == left["500"]["n_tensors"]
        assert found < 3 * error
