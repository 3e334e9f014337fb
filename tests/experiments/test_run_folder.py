import json
import sys
from datetime import datetime

import pytest
from rich.table import Table

from experiments import split_digits
from experiments.common import run_folder
from experiments.common.comparison import compare as comparison
from experiments.common.run_folder import make_run_folder, print_report, say_finished, write_json
from experiments.split_digits import SplitDigitsOptions


class Noon(datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 5, 6, 12, 0, 0, tzinfo=tz)


def test_runs_of_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "datetime", Noon)
    folders = [make_run_folder(tmp_path / "new" / "output", "name") for _ in range(3)]
    expected = [f"name-20240506-120000{end}" for end in ("", "-2", "-3")]
    assert [f.name for f in folders] == expected
    assert sorted(p.name for p in (tmp_path / "new" / "output").iterdir()) == sorted(expected)


def test_an_output_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        make_run_folder(tmp_path / "file", "name")


def test_json_holds_what_it_does_not_know_as_text(tmp_path):
    write_json({"folder": tmp_path, "value": 1.5}, tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text())
    assert content == {"folder": str(tmp_path), "value": 1.5}


def test_finished_parts_are_said_where_there_is_no_terminal(capsys, monkeypatch):
    say_finished("first")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    say_finished("second")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "first\n")


def test_report_says_where_everything_is(tmp_path, capsys):
    print_report(tmp_path, Table("column"), contents="Pictures are")
    assert capsys.readouterr().out.endswith(f"Pictures are in {tmp_path}\n")


def test_results_are_there_as_soon_as_a_method_has_finished(tmp_path, capsys, monkeypatch):
    """The third training fails; those before it are on disk and have been told."""
    original, trainings = comparison.learn, []

    def learn(*arguments):
        trainings.append(arguments)
        if len(trainings) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(comparison, "learn", learn)
    options = SplitDigitsOptions(
        scenario="task",
        methods=("naive", "joint", "ewc"),
        iterations=2,
        seeds=1,
        output=tmp_path,
        device="cpu",
    )
    with pytest.raises(KeyboardInterrupt):
        split_digits.main(options)
    (folder,) = tmp_path.iterdir()
    summary = json.loads((folder / "summary.json").read_text())["scenarios"]["task"]
    assert [*summary["methods"]] == ["naive", "joint"]
    assert len((folder / "results.csv").read_text().splitlines()) == 1 + 25 + 5
    lines = [line for line in capsys.readouterr().err.splitlines() if "average" in line]
    average = summary["methods"]["naive"]["average_accuracy"]
    assert lines[0] == f"task, naive, seed 0: {average:.2f} % on average (1 of 3)"
    assert lines[1].startswith("task, joint, seed 0: ")
