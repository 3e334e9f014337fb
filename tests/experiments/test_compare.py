import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tyro

from avalanche_hnet import PriorEWCPlugin, TaskInferencePlugin
from experiments import permuted_mnist, split_digits, split_mnist
from experiments.common.comparison.learning import make_strategy
from experiments.common.comparison.networks import GaussianNoise, make_model
from experiments.common.comparison.options import with_strengths
from experiments.split_digits import SplitDigitsOptions
from tests.support.split_digits import class_stream


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
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f"MNIST is not in {tmp_path}" in done.stderr
