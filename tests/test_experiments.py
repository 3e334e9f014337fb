import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import tyro
from avalanche.logging import TensorboardLogger
from avalanche.models import IncrementalClassifier
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from avalanche_hnet import (
    BlockMultiHeadClassifier,
    InMemoryPlugin,
    PriorEWCPlugin,
    TaskInferencePlugin,
)
from avalanche_hnet.benchmarks import PermutedDigits, SplitDigits
from experiments import (
    permuted_mnist,
    regression_uncertainty,
    split_digits,
    split_mnist,
    toy_regression,
)
from experiments.common.comparison.learning import make_strategy
from experiments.common.comparison.networks import GaussianNoise, make_model, mlp
from experiments.common.comparison.options import Options, with_strengths
from experiments.common.comparison.results import Result, by_method
from experiments.common.comparison.tables import inference_table, scenarios_table, summary_table
from experiments.common.hypernet import HypernetOptions
from experiments.common.in_memory import in_memory
from experiments.common.methods import METHODS
from experiments.common.modes import learning as mode_learning
from experiments.common.modes.options import GaussianMixtureOptions, ModeMethod
from experiments.common.spread import mean_and_spread
from experiments.split_digits import SplitDigitsOptions


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    output = tmp_path_factory.mktemp("runs")
    options = SplitDigitsOptions(
        scenario="task",
        iterations=20,  # for which the default strengths are too much
        prior_ewc_lambda=10.0,
        prior_variance=1.0,
        seeds=2,
        output=output,
        device="cpu",
    )
    split_digits.main(options)
    (folder,) = output.iterdir()
    return folder


def test_main_job_prints_a_table_and_where_everything_is(tmp_path, capsys):
    options = SplitDigitsOptions(
        iterations=5,
        seeds=1,
        output=tmp_path,
        methods=("naive", "prior-ewc"),
        scenario="task",
        device="cpu",
    )
    split_digits.main(options)
    (folder,) = tmp_path.iterdir()
    printed = capsys.readouterr().out
    assert str(folder) in printed
    assert all(word in printed for word in ("naive", "prior-ewc", "average", "forgetting"))
    assert "joint" not in printed


def test_csv_and_json_hold_the_same_accuracies(run_folder):
    with (run_folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    everything = json.loads((run_folder / "summary.json").read_text())
    summary = everything["scenarios"]["task"]
    assert set(summary["methods"]) == {"naive", "ewc", "prior-ewc", "hypernet", "joint"}
    assert len(rows) == 2 * (4 * 25 + 5)
    for method, content in summary["methods"].items():
        averages = []
        for result in content["results"]:
            final = [
                float(r["accuracy"])
                for r in rows
                if (r["method"], int(r["seed"]), r["trained_experiences"])
                == (method, result["seed"], "5")
            ]
            assert final == pytest.approx(result["matrix"][-1], abs=1e-3)
            assert result["average"] == pytest.approx(np.mean(final), abs=1e-3)
            averages.append(result["average"])
        assert content["average_accuracy"] == pytest.approx(np.mean(averages))
    assert summary["settings"]["iterations"] == 20
    assert summary["settings"]["prior_ewc_lambda"] > 0
    assert "torch" in everything["versions"]
    assert {r["scenario"] for r in rows} == {"task"}


def test_learning_happens(run_folder):
    summary = json.loads((run_folder / "summary.json").read_text())["scenarios"]["task"]
    assert summary["methods"]["joint"]["average_accuracy"] > 90
    for result in summary["methods"]["prior-ewc"]["results"]:
        assert min(result["matrix"][k][k] for k in range(5)) > 70


def test_tensorboard_events_of_a_run(run_folder):
    folder = run_folder / "tensorboard" / "prior-ewc" / "seed1"
    tags = EventAccumulator(str(folder)).Reload().Tags()
    assert {"PriorEWC/Loss", "PriorEWC/FisherMax"} <= set(tags["scalars"])
    assert "PriorEWC/LogPrecision" in tags["histograms"]
    assert any(t.startswith("Top1_Acc_Exp/eval_phase/test_stream/Task004") for t in tags["scalars"])
    assert len(list((run_folder / "tensorboard").glob("*/seed*"))) == 10


def test_tensorboard_events_of_the_hypernetwork(run_folder):
    folder = run_folder / "tensorboard" / "hypernet" / "seed1"
    events = EventAccumulator(str(folder)).Reload()
    assert {"Hypernet/Loss", "Hypernet/WeightsMoved/Task000"} <= set(events.Tags()["scalars"])


def test_all_methods_are_the_default():
    assert set(Options().methods) == {"naive", "ewc", "prior-ewc", "hypernet", "joint"}


def test_all_scenarios_are_each_scenario_with_what_it_uses():
    options = Options(scenario="all", head="separate", criterion="confidence", prediction="map")
    task, domain, classes = options.by_scenario()
    assert [o.scenario for o in (task, domain, classes)] == ["task", "domain", "class"]
    assert [o.head for o in (task, domain, classes)] == [None, None, "separate"]
    assert [o.criterion for o in (task, domain, classes)] == ["entropy", *2 * ["confidence"]]
    assert classes.prediction == "map"
    assert Options(scenario="domain").by_scenario() == [Options(scenario="domain")]
    assert [o.heads for o in (task, domain, classes)] == ["task", "domain", "separate"]
    assert Options(scenario="class").heads == "growing"


@pytest.mark.parametrize(
    ("scenario", "head", "inferring"),
    [
        ("task", None, set()),
        ("domain", None, {"hypernet"}),
        ("class", None, {"hypernet"}),
        ("class", "fixed", {"hypernet"}),
        ("class", "separate", {"naive", "ewc", "prior-ewc", "hypernet", "joint"}),
    ],
)
def test_who_infers_tasks(scenario, head, inferring):
    options = Options(scenario=scenario, head=head)
    assert {m for m in options.methods if options.infers_tasks(m)} == inferring


def test_hypernetwork_with_one_wide_output_layer(tmp_path):
    hypernet = HypernetOptions(multi_head=True, mask_heads=True, init="hyperfan")
    options = SplitDigitsOptions(
        methods=("hypernet",),
        scenario="task",
        iterations=60,
        seeds=1,
        output=tmp_path,
        hypernet=hypernet,
    )
    split_digits.main(options)
    (result,) = results_of(tmp_path, "task", "hypernet")
    assert min(result["matrix"][k][k] for k in range(5)) > 70


def test_picture_is_not_empty(run_folder):
    image = np.asarray(Image.open(run_folder / "matrices-task.png").convert("RGB"))
    assert image.shape[1] > 600
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50


@pytest.fixture(scope="module")
def all_scenarios(tmp_path_factory):
    output = tmp_path_factory.mktemp("scenarios")
    options = SplitDigitsOptions(
        iterations=60, seeds=1, output=output, hidden=(32,), prior_ewc_lambda=10.0, device="cpu"
    )
    split_digits.main(options)
    return output


def test_all_scenarios_are_reported(all_scenarios):
    (folder,) = all_scenarios.iterdir()
    assert folder.name.startswith("split-digits-all-")
    summary = json.loads((folder / "summary.json").read_text())["scenarios"]
    assert list(summary) == ["task", "domain", "class"]
    for scenario, found in summary.items():
        assert found["settings"]["scenario"] == scenario
        assert (folder / f"matrices-{scenario}.png").exists()
        assert len(list((folder / "tensorboard" / scenario).glob("*/seed0"))) == 5
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * (4 * 25 + 5)
    assert {r["scenario"] for r in rows} == {"task", "domain", "class"}


def test_tasks_are_inferred_where_they_are_not_told(all_scenarios):
    for scenario in ("task", "domain", "class"):
        (hypernet,) = results_of(all_scenarios, scenario, "hypernet")
        (naive,) = results_of(all_scenarios, scenario, "naive")
        assert naive["inference"] is None
        assert (hypernet["inference"] is None) == (scenario == "task")
    # The same network, told the task, is that of the task scenario but for its output layer.
    assert np.mean(hypernet["told"]) > max(90, hypernet["average"])
    # A right answer in the class scenario needs the right task; in the domain scenario, luck helps.
    shares, final = hypernet["inference"], hypernet["matrix"][-1]
    assert all(share >= accuracy for share, accuracy in zip(shares, final, strict=True))
    assert np.mean(shares) > 30
    (domain,) = results_of(all_scenarios, "domain", "hypernet")
    assert domain["average"] > np.mean(domain["inference"])
    (folder,) = all_scenarios.iterdir()
    events = EventAccumulator(str(folder / "tensorboard/class/hypernet/seed0")).Reload()
    assert "TaskInference_Acc_Stream/eval_phase/test_stream/Task004" in events.Tags()["scalars"]
    assert any("TaskInference_ConfusionMatrix" in tag for tag in events.Tags()["images"])


def test_class_incremental_without_protection_knows_the_last_classes_only(all_scenarios):
    (naive,) = results_of(all_scenarios, "class", "naive")
    assert max(naive["matrix"][-1][:4]) < 20 < 80 < naive["matrix"][-1][4]
    (joint,) = results_of(all_scenarios, "class", "joint")
    assert joint["average"] > 80


@pytest.mark.parametrize("head", ["growing", "fixed", "separate"])
def test_heads_of_the_class_scenario(head, tmp_path):
    options = SplitDigitsOptions(
        scenario="class",
        head=head,
        methods=("naive", "prior-ewc"),
        prior_ewc_lambda=10.0,
        prior_variance=1.0,
        iterations=30,
        seeds=1,
        output=tmp_path,
        device="cpu",
    )
    split_digits.main(options)
    for method in options.methods:
        (result,) = results_of(tmp_path, "class", method)
        assert (result["inference"] is None) == (head != "separate")
        # After the first two classes a growing softmax has only these to choose from.
        assert result["matrix"][0][0] > 60
    model = make_model("naive", class_stream(), options)
    outputs = {"growing": IncrementalClassifier, "separate": BlockMultiHeadClassifier}
    if head == "fixed":
        assert model[-1].out_features == 10
    else:
        assert any(isinstance(m, outputs[head]) for m in model.modules())


@pytest.mark.parametrize("prediction", ["linearized", "map", "sample"])
@pytest.mark.parametrize("criterion", ["entropy", "confidence", "agreement"])
def test_options_of_the_inference_reach_the_strategy(criterion, prediction, tmp_path):
    if (criterion, prediction) == ("agreement", "map"):
        return
    options = with_strengths(
        SplitDigitsOptions(
            scenario="class",
            head="separate",
            methods=("prior-ewc",),
            criterion=criterion,
            prediction=prediction,
        )
    )
    model = make_model("prior-ewc", class_stream(), options)
    strategy = make_strategy("prior-ewc", model, options, 5, tmp_path)
    (inference,) = (p for p in strategy.plugins if isinstance(p, TaskInferencePlugin))
    (ewc,) = (p for p in strategy.plugins if isinstance(p, PriorEWCPlugin))
    assert inference.options.criterion == criterion
    assert inference.options.method == prediction
    assert inference.options.posterior is ewc.posterior


def test_hypernetwork_generates_all_classes_in_the_class_scenario():
    options = SplitDigitsOptions(scenario="class")
    model = make_model("hypernet", class_stream(), options)
    assert model.units.reuse
    assert model.units.number == 2
    wide = replace(options, hypernet=replace(options.hypernet, multi_head=True))
    assert make_model("hypernet", class_stream(), wide).units.number == 10
    one = make_model("hypernet", class_stream(), replace(options, scenario="domain"))
    assert not one.multi_head


@pytest.mark.parametrize("method", ["hypernet", "naive"])
def test_input_noise_reaches_the_networks(method):
    options = SplitDigitsOptions(scenario="domain", input_noise=0.3)
    model = make_model(method, class_stream(), options)
    (noise,) = (m for m in model.modules() if isinstance(m, GaussianNoise))
    assert noise.std == 0.3


def class_stream():
    return SplitDigits(5, seed=0, return_task_id=True)


def results_of(output, scenario, method):
    (folder,) = output.iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    return summary["scenarios"][scenario]["methods"][method]["results"]


def test_seeds_repeat_and_differ(tmp_path):
    options = SplitDigitsOptions(
        iterations=10,
        seeds=2,
        scenario="task",
        output=tmp_path / "a",
        methods=("prior-ewc",),
        device="cpu",
    )
    split_digits.main(options)
    split_digits.main(SplitDigitsOptions(**{**options.__dict__, "output": tmp_path / "b"}))
    summaries = [results_of(tmp_path / name, "task", "prior-ewc") for name in ("a", "b")]
    assert summaries[0] == summaries[1]
    assert summaries[0][0]["matrix"] != summaries[0][1]["matrix"]


def test_validation_data_are_held_out_of_the_training_data():
    benchmark = SplitDigits(5, shuffle=False)
    stored, held = (in_memory(benchmark, validate=v) for v in (False, True))
    for k in range(5):
        images = [
            {x.numpy().tobytes() for x, *_ in stream[k].dataset}
            for stream in (stored.train_stream, held.train_stream, held.test_stream)
        ]
        assert images[1] | images[2] == images[0]
        assert not images[1] & images[2]
        assert len(held.test_stream[k].dataset) == len(stored.train_stream[k].dataset) // 10


def test_in_memory_keeps_images_labels_and_tasks():
    benchmark = SplitDigits(5, seed=1, return_task_id=True, class_ids_from_zero_in_each_exp=True)
    stored = in_memory(benchmark, validate=False)
    for name in ("train_stream", "test_stream"):
        pairs = zip(getattr(benchmark, name), getattr(stored, name), strict=True)
        for old, new in pairs:
            assert new.task_labels == old.task_labels
            assert new.classes_in_this_experience == sorted(old.classes_in_this_experience)
            assert len(new.dataset) == len(old.dataset)
            x, y, t = new.dataset[3]
            torch.testing.assert_close(x, old.dataset.eval()[3][0])
            assert (int(y), t) == (old.dataset[3][1], old.dataset[3][2])


def test_permutations_as_new_classes():
    stored = in_memory(PermutedDigits(3, seed=0), validate=False, new_classes=10)
    assert [e.classes_in_this_experience[0] for e in stored.train_stream] == [0, 10, 20]


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


def set_strengths(monkeypatch, **strengths):
    """Of the methods, in the comparison on split digits, for each scenario."""
    for name, of_scenarios in strengths.items():
        method = name.replace("_", "-")
        entry = replace(METHODS[method], strengths={"split-digits": of_scenarios})
        monkeypatch.setitem(METHODS, method, entry)


def test_separate_heads_have_the_strengths_of_the_task_scenario(monkeypatch):
    set_strengths(
        monkeypatch, ewc={"task": 1.0, "class": 3.0}, prior_ewc={"task": 2.0, "class": 4.0}
    )
    filled = with_strengths(SplitDigitsOptions(scenario="class", head="separate"))
    assert (filled.ewc_lambda, filled.prior_ewc_lambda) == (1.0, 2.0)


def test_strengths_that_are_given_are_kept(monkeypatch):
    set_strengths(monkeypatch, ewc={"task": 1.0}, prior_ewc={"task": 2.0})
    filled = with_strengths(SplitDigitsOptions(scenario="task", ewc_lambda=3.0))
    assert (filled.ewc_lambda, filled.prior_ewc_lambda) == (3.0, 2.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dropout": 1.0}, "dropout must be a probability below 1, got 1.0"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"methods": ()}, "methods must name at least one"),
        ({"methods": ("naive", "naive")}, "each once"),
        ({"head": "fixed", "scenario": "domain"}, "head='fixed' needs scenario 'class'"),
        ({"criterion": "confidence"}, "criterion='confidence' is for tasks that are inferred"),
        (
            {"criterion": "agreement", "scenario": "domain"},
            "criterion='agreement' needs draws from a posterior",
        ),
        (
            {"prediction": "sample", "scenario": "class"},
            "prediction='sample' needs the method 'prior-ewc'",
        ),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"prior_ewc_lambda": -1.0}, "prior_ewc_lambda must be at least 0, got -1.0"),
        ({"n_fisher": 0}, "n_fisher must be at least 1, got 0"),
        ({"hidden": (10, 0)}, "hidden must be widths"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
    ],
)
def test_bad_options_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Options(**arguments)


@pytest.mark.parametrize("module", [split_digits, split_mnist, permuted_mnist])
def test_help(module, capsys):
    options = next(
        v for v in vars(module).values() if getattr(v, "__module__", "") == module.__name__
    )
    with pytest.raises(SystemExit) as end:
        tyro.cli(options, args=["--help"], description=module.__doc__)
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert all(w in printed for w in ("--scenario", "--seeds", "--methods", "--validate"))


@pytest.mark.parametrize(
    ("name", "options"),
    [("split_mnist", "SplitMNISTOptions"), ("permuted_mnist", "PermutedMNISTOptions")],
)
def test_missing_mnist_is_one_sentence(name, options, tmp_path):
    code = f"""
import sys
from pathlib import Path
import torchvision.datasets.mnist
from experiments import {name}

def without_network(*args, **kwargs):
    raise OSError("no network")

torchvision.datasets.mnist.download_and_extract_archive = without_network
{name}.main(vars({name})[{options!r}](dataset_root=Path({str(tmp_path)!r})))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f"MNIST is not in {tmp_path}" in done.stderr


def test_dropout_is_in_the_network_of_every_scenario():
    for heads in ("task", "domain", "growing", "fixed", "separate"):
        layers = [type(m) for m in mlp(heads, 4, (5, 6), 3, dropout=0.3).modules()]
        assert layers.count(torch.nn.Dropout) == 2
        assert torch.nn.Dropout not in [type(m) for m in mlp(heads, 4, (5, 6), 3).modules()]


@pytest.mark.in_memory
@pytest.mark.parametrize("wanted", [True, False])
def test_every_experiment_can_do_without_memory(wanted, tmp_path):
    options = replace(SplitDigitsOptions(), scenario="task", in_memory=wanted)
    benchmark = split_digits.make_benchmark(options, 0)
    strategies = [
        make_strategy(method, make_model(method, benchmark, options), options, 5, tmp_path)
        for method in options.methods
    ]
    for method in get_args(toy_regression.RegressionMethod):
        toy = toy_regression.ToyRegressionOptions(method=method, in_memory=wanted)
        strategies.append(toy_regression.make_strategy(toy, 10, tmp_path))
    for method in get_args(ModeMethod):
        modes = GaussianMixtureOptions(in_memory=wanted)
        strategies.append(mode_learning.make_strategy(method, modes, tmp_path)[0])
    uncertain = regression_uncertainty.UncertaintyOptions(in_memory=wanted)
    logger = TensorboardLogger(tmp_path)
    strategies.append(
        regression_uncertainty.make_strategy(uncertain, nn.Linear(1, 1), logger, PriorEWCPlugin())
    )
    for strategy in strategies:
        assert any(isinstance(p, InMemoryPlugin) for p in strategy.plugins) == wanted
