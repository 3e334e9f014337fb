"""Experiments go on where they were broken off, and keep what is finished."""

import errno
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import gaussian_mixture, posterior_prediction, split_digits, toy_regression
from experiments import regression_uncertainty as uncertainty
from experiments.common import run_folder
from experiments.common.command import run_command
from experiments.common.comparison import compare as comparison
from experiments.common.hypernet import HypernetOptions
from experiments.common.modes.options import GaussianMixtureOptions
from experiments.common.parts import Run
from experiments.common.run_folder import write_json, write_text
from experiments.common.uncertainty.options import UncertaintyOptions
from experiments.posterior_prediction import PosteriorPredictionOptions
from experiments.split_digits import SplitDigitsOptions
from experiments.toy_regression import ToyRegressionOptions

DIGITS = SplitDigitsOptions(
    scenario="task",
    methods=("naive", "prior-ewc", "hypernet"),
    iterations=2,
    seeds=2,
    hidden=(8,),
    device="cpu",
)


def files_of(folder, *names):
    return {name: (folder / name).read_text() for name in names}


def interrupting(module, monkeypatch, at):
    """Ctrl-C in a module's learning of this number; how often it is called."""
    original, calls = module.learn, []

    def learn(*arguments):
        calls.append(arguments)
        if len(calls) == at:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(module, "learn", learn)
    return calls


@pytest.mark.parametrize("at", [2, 5])
def test_digits_go_on(tmp_path, monkeypatch, capsys, at):
    whole = tmp_path / "whole"
    split_digits.main(replace(DIGITS, run_folder=whole))
    options = replace(DIGITS, run_folder=tmp_path / "run")
    calls = interrupting(comparison, monkeypatch, at)
    with pytest.raises(KeyboardInterrupt):
        split_digits.main(options)
    unfinished = options.run_folder / "tensorboard" / calls[-1][0] / f"seed{calls[-1][3]}"
    unfinished.mkdir(parents=True)
    (unfinished / "events.half").write_text("of the part that was broken off")
    capsys.readouterr()
    split_digits.main(options)
    assert len(calls) == 1 + 2 * 3  # the broken one twice, the finished ones once
    names = ("results.csv", "options.json")
    assert files_of(options.run_folder, *names) == files_of(whole, *names)
    summaries = [json.loads((f / "summary.json").read_text()) for f in (options.run_folder, whole)]
    for summary in summaries:
        del summary["scenarios"]["task"]["settings"]["run_folder"]
    assert summaries[0] == summaries[1]
    assert capsys.readouterr().err.count("finished before") == at - 1
    assert not (unfinished / "events.half").exists()
    assert (options.run_folder / "matrices-task.png").exists()


def test_nothing_is_run_again_once_all_is_finished(tmp_path, monkeypatch):
    options = replace(DIGITS, run_folder=tmp_path / "run")
    split_digits.main(options)
    before = (options.run_folder / "results.csv").read_text()
    calls = interrupting(comparison, monkeypatch, at=1)
    monkeypatch.setattr(comparison, "in_memory", None)  # not even the data are read
    split_digits.main(options)
    assert calls == []
    assert (options.run_folder / "results.csv").read_text() == before


OTHERS = {
    "gaussian mixture": (
        gaussian_mixture,
        GaussianMixtureOptions(methods=("naive", "prior-ewc"), iterations=2, seeds=2),
        ["summary.json", "options.json"],
        4,
    ),
    "toy regression": (
        toy_regression,
        ToyRegressionOptions(method="ewc", iterations=2, seeds=3),
        ["parts/seed0.json", "parts/seed2.json"],
        3,
    ),
    "uncertainty": (
        uncertainty,
        UncertaintyOptions(iterations=2, seeds=2),
        ["parts/seed0.json", "parts/seed1.json"],
        2,
    ),
    "predictions": (
        posterior_prediction,
        PosteriorPredictionOptions(iterations=2, seeds=2, n_samples=2),
        ["parts/seed0.json", "parts/seed1.json"],
        2,
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_experiments_go_on(name, tmp_path, monkeypatch, capsys):
    module, options, names, n_parts = OTHERS[name]
    whole = replace(options, run_folder=tmp_path / "whole")
    module.main(whole)
    printed = capsys.readouterr().out
    broken = replace(options, run_folder=tmp_path / "run")
    calls = interrupting(module, monkeypatch, at=2)
    with pytest.raises(KeyboardInterrupt):
        module.main(broken)
    module.main(broken)
    assert len(calls) == 1 + n_parts
    found, expected = (
        {name: text.replace(str(run), "RUN") for name, text in files_of(run, *names).items()}
        for run in (broken.run_folder, whole.run_folder)
    )
    assert found == expected
    resumed = capsys.readouterr().out
    assert resumed.replace(str(broken.run_folder), str(whole.run_folder)) == printed
    pictures = [
        sorted(p.relative_to(run).as_posix() for p in run.rglob("*.png"))
        for run in (broken.run_folder, whole.run_folder)
    ]
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iterations": 3}, "of a run with iterations=2, but now it is 3"),
        ({"methods": ("naive",)}, r"with methods=\['naive', 'prior-ewc', 'hypernet'\]"),
        ({"hypernet": HypernetOptions(beta=3.0)}, r"with hypernet.beta=0.1, but now it is 3.0"),
        ({"scenario": "domain"}, "with experiment='split-digits-task', but now"),
    ],
)
def test_folder_of_other_options_is_refused(tmp_path, change, message):
    folder = tmp_path / "run"
    Run.begin(replace(DIGITS, run_folder=folder), "split-digits-task")
    before = files_of(folder, "options.json")
    with pytest.raises(ValueError, match=message):
        split_digits.main(replace(DIGITS, run_folder=folder, **change))
    assert files_of(folder, "options.json") == before
    assert [p.name for p in folder.iterdir()] == ["options.json"]


def test_folder_of_no_run_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("not to be mixed with results")
    with pytest.raises(ValueError, match="is not empty, but of no run"):
        Run.begin(replace(DIGITS, run_folder=tmp_path), "name")
    (tmp_path / "options.json").write_text("half a fi")
    with pytest.raises(ValueError, match=r"options\.json cannot be read"):
        Run.begin(replace(DIGITS, run_folder=tmp_path), "name")


def full(monkeypatch, at):
    """A disk that is full from the write of this number on."""
    written, original = [], run_folder.os.fsync

    def fsync(number):
        written.append(number)
        if len(written) >= at:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(number)

    monkeypatch.setattr(run_folder.os, "fsync", fsync)


def test_a_file_is_written_as_a_whole_or_left(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json({"value": 1}, path)
    full(monkeypatch, at=1)
    with pytest.raises(OSError, match=r"No space left on device: .*a\.json"):
        write_text("other", path)
    assert json.loads(path.read_text()) == {"value": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["split_digits", *arguments])
    run_command(split_digits.main, SplitDigitsOptions, "description")


TINY = "--scenario task --methods naive joint --iterations 2 --seeds 1 --hidden 8 --device cpu"


def test_full_disk_gives_a_sentence_and_the_run_goes_on(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    arguments = [*TINY.split(), "--run-folder", str(folder)]
    with monkeypatch.context() as patched:
        full(patched, at=5)  # the options, a part, the table and the summary come first
        with pytest.raises(SystemExit) as stopped:
            command(patched, *arguments)
    sentence = str(stopped.value)
    assert sentence.startswith(f"No space left on device: {folder}/parts/task/joint/seed0.json.")
    assert "--run-folder" in sentence
    assert "\n" not in sentence
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary["scenarios"]["task"]["methods"]) == ["naive"]
    calls = interrupting(comparison, monkeypatch, at=99)
    command(monkeypatch, *arguments)
    assert [call[0] for call in calls] == ["joint"]
    assert len((folder / "results.csv").read_text().splitlines()) == 1 + 25 + 5


def test_folder_that_cannot_be_made_gives_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"^Not a directory: .*file/.*\. What is finished stays"):
        command(monkeypatch, *TINY.split(), "--output", str(tmp_path / "file"))


def test_parts_are_where_they_were_if_the_folder_moves(tmp_path, monkeypatch):
    options = replace(DIGITS, seeds=1, run_folder=tmp_path / "run")
    split_digits.main(options)
    moved = Path(shutil.move(tmp_path / "run", tmp_path / "moved"))
    calls = interrupting(comparison, monkeypatch, at=1)
    split_digits.main(replace(options, run_folder=moved))
    assert calls == []
