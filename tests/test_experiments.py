import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from avalanche_hnet.benchmarks import PermutedDigits, SplitDigits
from experiments import permuted_mnist, split_digits, split_mnist
from experiments.hypernet import HypernetOptions
from experiments.in_memory import in_memory
from experiments.networks import mlp
from experiments.options import Options, with_strengths
from experiments.results import Result, by_method, mean_and_spread, summary_table
from experiments.split_digits import SplitDigitsOptions
from experiments.tensor_batches import TensorBatches


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    output = tmp_path_factory.mktemp("runs")
    options = SplitDigitsOptions(
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
        iterations=5, seeds=1, output=tmp_path, methods=("naive", "prior-ewc"), device="cpu"
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
    summary = json.loads((run_folder / "summary.json").read_text())
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
    assert "torch" in summary["settings"]["versions"]


def test_learning_happens(run_folder):
    summary = json.loads((run_folder / "summary.json").read_text())
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


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_all_methods_of_the_scenario_are_the_default(scenario):
    methods = Options(scenario=scenario).chosen_methods
    assert ("hypernet" in methods) == (scenario == "task")
    assert {"naive", "ewc", "prior-ewc", "joint"} <= set(methods)


def test_hypernetwork_with_one_wide_output_layer(tmp_path):
    hypernet = HypernetOptions(multi_head=True, mask_heads=True, init="hyperfan")
    options = SplitDigitsOptions(
        methods=("hypernet",), iterations=60, seeds=1, output=tmp_path, hypernet=hypernet
    )
    split_digits.main(options)
    (folder,) = tmp_path.iterdir()
    (result,) = json.loads((folder / "summary.json").read_text())["methods"]["hypernet"]["results"]
    assert min(result["matrix"][k][k] for k in range(5)) > 70


def test_tensor_batches_are_those_of_a_loader():
    x, y = torch.arange(10.0), torch.arange(10)
    batches = TensorBatches([x, y], 4, shuffle=False)
    assert [b[1].tolist() for b in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(batches) == 3
    dropped = TensorBatches([x, y], 4, shuffle=True, drop_last=True)
    assert len(dropped) == 2
    epochs = [torch.cat([b[1] for b in dropped]).tolist() for _ in range(2)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert all(torch.equal(bx, by.float()) for bx, by in dropped)


def test_picture_is_not_empty(run_folder):
    image = np.asarray(Image.open(run_folder / "matrices.png").convert("RGB"))
    assert image.shape[1] > 600
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_scenarios(scenario, tmp_path):
    options = SplitDigitsOptions(
        scenario=scenario, iterations=10, seeds=1, output=tmp_path, hidden=(16,), device="cpu"
    )
    split_digits.main(options)
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith(f"split-digits-{scenario}-")


def test_seeds_repeat_and_differ(tmp_path):
    options = SplitDigitsOptions(
        iterations=10, seeds=2, output=tmp_path / "a", methods=("prior-ewc",), device="cpu"
    )
    split_digits.main(options)
    split_digits.main(SplitDigitsOptions(**{**options.__dict__, "output": tmp_path / "b"}))
    summaries = [
        json.loads(p.read_text())["methods"]["prior-ewc"]["results"]
        for p in sorted(tmp_path.glob("*/*/summary.json"))
    ]
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


def test_strengths_that_are_given_are_kept():
    filled = with_strengths(Options(ewc_lambda=3.0), {"task": 1.0}, {"task": 2.0})
    assert (filled.ewc_lambda, filled.prior_ewc_lambda) == (3.0, 2.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dropout": 1.0}, "dropout must be a probability below 1, got 1.0"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"methods": ()}, "methods must name at least one"),
        ({"methods": ("naive", "naive")}, "each once"),
        ({"methods": ("hypernet",), "scenario": "domain"}, "'hypernet' with scenario 'task' only"),
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
import torchvision.datasets.mnist
from experiments import {name}

def without_network(*args, **kwargs):
    raise OSError("no network")

torchvision.datasets.mnist.download_and_extract_archive = without_network
{name}.main(vars({name})[{options!r}](dataset_root={name}.Path({str(tmp_path)!r})))
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
    for scenario in ("task", "domain", "class"):
        layers = [type(m) for m in mlp(scenario, 4, (5, 6), 3, dropout=0.3).modules()]
        assert layers.count(torch.nn.Dropout) == 2
        assert torch.nn.Dropout not in [type(m) for m in mlp(scenario, 4, (5, 6), 3).modules()]
