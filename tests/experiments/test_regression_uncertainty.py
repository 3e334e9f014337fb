import json

import numpy as np
import pytest
import tyro
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments import regression_uncertainty
from experiments.common.uncertainty.measures import TaskResult
from experiments.common.uncertainty.options import UncertaintyOptions
from experiments.common.uncertainty.results import summary
from experiments.regression_uncertainty import learn
from tests.support.uncertainty import options


@pytest.mark.parametrize(
    ("head", "method"), [("single", "linearized"), ("multi", "sample"), ("multi", "map")]
)
def test_reports_draws_and_logs(head, method, tmp_path, capsys):
    folder = regression_uncertainty.main(options(head=head, method=method, output=tmp_path))
    assert folder.name.startswith(f"regression-uncertainty-{head}-")
    printed = capsys.readouterr().out
    assert all(w in printed for w in ("covered", "RMSE", "beyond", folder.name[:20]))

    image = np.asarray(Image.open(folder / "uncertainty-seed0.png").convert("RGB"))
    assert image.shape[1] > (1200 if head == "single" else 1800)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50

    report = json.loads((folder / "results.json").read_text())
    assert report["settings"]["head"] == head
    [tasks] = report["seeds"]
    assert [t["task"] for t in tasks] == [0, 1, 2]
    assert all(0 <= t["coverage"] <= 100 and t["rmse"] > 0 for t in tasks)
    assert all((t["ratio"] is None) == (method == "map") for t in tasks)

    events = EventAccumulator(str(folder / "tensorboard" / "seed0")).Reload()
    assert len(events.Images("Uncertainty")) == 1
    scalars = events.Tags()["scalars"]
    for task in tasks:
        tag = f"Uncertainty/coverage/Task{task['task']:03}"
        assert events.Scalars(tag)[0].value == pytest.approx(task["coverage"])
    assert "PriorEWC/EWC" in scalars
    assert any(name.startswith("MSE_Exp/eval_phase") for name in scalars)


def test_seeds_repeat_and_differ(tmp_path):
    chosen = options(iterations=20, method="sample")
    runs = [learn(chosen, seed, tmp_path / str(i)) for i, seed in enumerate([0, 0, 1])]
    assert runs[0] == runs[1] != runs[2]


def test_structure_of_the_posterior(tmp_path):
    results = {
        structure: learn(options(iterations=50, structure=structure), 0, tmp_path / structure)
        for structure in ("diagonal", "kronecker")
    }
    assert results["diagonal"] != results["kronecker"]


def test_few_iterations_keep_all_tasks_and_know_where_there_were_none(tmp_path):
    for result in learn(options(iterations=300, hidden=(200,)), 0, tmp_path):
        assert result.coverage >= 90
        assert result.ratio >= 3


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("task_set", ["hypernetworks", "posterior-replay"])
@pytest.mark.parametrize("head", ["single", "multi"])
def test_truth_is_in_the_band_and_the_band_is_wide_elsewhere(head, task_set, tmp_path):
    """With the default settings, for each task; in the gaps and beyond the data, too."""
    chosen = UncertaintyOptions(head=head, task_set=task_set)
    for seed in range(3):
        for result in learn(chosen, seed, tmp_path / str(seed)):
            assert result.coverage >= 90, (seed, result)
            assert result.ratio >= 3, (seed, result)
            assert result.ratio_gaps >= 3, (seed, result)
            assert result.ratio_beyond >= 3, (seed, result)
            assert result.rmse < 0.05, (seed, result)


def test_table_has_a_row_for_each_seed_and_task():
    results = [
        [TaskResult(t, 90 + t, 0.1 * t, 0.2, 4.0 + seed, None, 5.0) for t in range(3)]
        for seed in range(2)
    ]
    cells = [list(column.cells) for column in summary(results, options(seeds=2)).columns]
    assert cells[0] == ["0"] * 3 + ["1"] * 3
    assert cells[2] == ["90.0", "91.0", "92.0"] * 2
    assert cells[5] == ["4.0"] * 3 + ["5.0"] * 3
    assert cells[6] == ["-"] * 6


@pytest.mark.parametrize(("task_set", "count"), [("hypernetworks", 100), ("posterior-replay", 20)])
def test_task_sets(task_set, count):
    benchmark = UncertaintyOptions(task_set=task_set).make_benchmark()
    assert len(benchmark.train_stream[0].dataset) == count
    middle = benchmark.functions[0](np.array([[-2.5]])).item()
    assert middle == (0.5 if task_set == "hypernetworks" else 0.125)
    own = UncertaintyOptions(task_set=task_set, n_train=7, data_seed=3).make_benchmark()
    assert len(own.train_stream[0].dataset) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"n_samples": 0}, "n_samples must be at least 1, got 0"),
        ({"hidden": ()}, r"hidden must name widths of at least 1, got \(\)"),
        ({"hidden": (3, 0)}, r"hidden must name widths of at least 1, got \(3, 0\)"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"noise_std": 0.0}, "noise_std must be positive, got 0.0"),
        ({"steepness": -1.0}, "steepness must be at least 0, got -1.0"),
    ],
)
def test_bad_options_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        options(**arguments)


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        tyro.cli(UncertaintyOptions, args=["--help"], description=regression_uncertainty.__doc__)
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert all(w in printed for w in ("--head", "--task-set", "--method", "--prior-variance"))
