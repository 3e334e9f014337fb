import csv
import json

import numpy as np
import pytest
from avalanche.models import IncrementalClassifier
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from avalanche_hnet import BlockMultiHeadClassifier
from experiments import split_digits
from experiments.common.comparison.networks import make_model
from experiments.common.hypernet import HypernetOptions
from experiments.common.methods import METHODS
from experiments.split_digits import SplitDigitsOptions
from tests.support.split_digits import class_stream


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    output = tmp_path_factory.mktemp("runs")
    options = SplitDigitsOptions(
        scenario="task",
        iterations=20,  # too few for the default strengths
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
    assert set(summary["methods"]) == {*METHODS}
    assert len(rows) == 2 * ((len(METHODS) - 1) * 25 + 5)
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
    assert len(list((run_folder / "tensorboard").glob("*/seed*"))) == 2 * len(METHODS)


def test_tensorboard_events_of_the_hypernetwork(run_folder):
    folder = run_folder / "tensorboard" / "hypernet" / "seed1"
    events = EventAccumulator(str(folder)).Reload()
    assert {"Hypernet/Loss", "Hypernet/WeightsMoved/Task000"} <= set(events.Tags()["scalars"])


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
        assert len(list((folder / "tensorboard" / scenario).glob("*/seed0"))) == len(METHODS)
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * ((len(METHODS) - 1) * 25 + 5)
    assert {r["scenario"] for r in rows} == {"task", "domain", "class"}


def test_tasks_are_inferred_where_they_are_not_told(all_scenarios):
    for scenario in ("task", "domain", "class"):
        (hypernet,) = results_of(all_scenarios, scenario, "hypernet")
        (naive,) = results_of(all_scenarios, scenario, "naive")
        assert naive["inference"] is None
        assert (hypernet["inference"] is None) == (scenario == "task")
    # Told the task, the network is that of the task scenario but for its output layer.
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
