"""A method is added to all comparisons by one entry of the registry."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
from avalanche.training import JointTraining, Naive
from avalanche.training.plugins import EWCPlugin

from avalanche_hnet import (
    GaussianPosterior,
    HypernetTemplate,
    KroneckerPosterior,
    PriorEWCPlugin,
)
from experiments.common.comparison.options import with_strengths
from experiments.common.methods import METHODS, Method, MethodName, all_but
from experiments.common.modes.options import MODE_METHODS, GaussianMixtureOptions
from experiments.permuted_mnist import PermutedMNISTOptions
from experiments.split_digits import SplitDigitsOptions
from experiments.split_mnist import SplitMNISTOptions

ADDED = """
import sys
from pathlib import Path

from avalanche.training.plugins import SynapticIntelligencePlugin

from experiments.common.methods import METHODS, Method

METHODS["si"] = Method(
    plugin=lambda strength, **_: SynapticIntelligencePlugin(strength),
    strengths={
        "split-digits": {"task": 1.0, "domain": 1.0, "class": 1.0},
        "gaussian-mixture": {"class": 1.0},
        "toy-regression": {"task": 1.0},
    },
)

from experiments import gaussian_mixture, split_digits, toy_regression

short = {"seeds": 1, "iterations": 2, "output": Path(sys.argv[1])}
assert "si" in split_digits.SplitDigitsOptions().methods
split_digits.main(split_digits.SplitDigitsOptions(methods=("si",), scenario="task", **short))
gaussian_mixture.main(gaussian_mixture.GaussianMixtureOptions(methods=("si",), **short))
toy_regression.main(toy_regression.ToyRegressionOptions(method="si", **short))
"""


def test_one_entry_adds_a_method_to_all_comparisons(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", ADDED, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = [line.partition(":")[0] for line in done.stderr.splitlines() if "seed 0" in line]
    assert said == ["task, si, seed 0", "si, seed 0", "si, seed 0"]
    assert len(list(tmp_path.glob("split-digits-task-*/tensorboard/si/seed0/events*"))) == 1
    assert len(list(tmp_path.glob("gaussian-mixture-class-*/entropy-si.png"))) == 1
    assert len(list(tmp_path.glob("toy-regression-si-*/fits-*.png"))) == 3


def test_names_are_the_choices():
    assert get_args(MethodName) == tuple(METHODS)
    assert {"ewc", "prior-ewc", "hypernet"} <= {*METHODS}
    assert set(all_but("naive", "joint")) == METHODS.keys() - {"naive", "joint"}


def test_plugins_take_what_they_need_of_the_details():
    details = {"prior_variance": 3.0, "n_fisher": 7}
    assert METHODS["naive"].plugins(None, **details) == []
    (ewc,) = METHODS["ewc"].plugins(2.0, **details)
    assert isinstance(ewc, EWCPlugin)
    assert (ewc.ewc_lambda, ewc.mode, ewc.decay_factor) == (2.0, "online", 1.0)
    (prior_ewc,) = METHODS["prior-ewc"].plugins(5.0, **details)
    assert isinstance(prior_ewc, PriorEWCPlugin)
    assert (prior_ewc.ewc_lambda, prior_ewc.n_fisher) == (5.0, 7)
    assert isinstance(prior_ewc.posterior, GaussianPosterior)
    assert prior_ewc.posterior.prior_variance == 3.0
    (kronecker,) = METHODS["prior-ewc-kron"].plugins(5.0, **details)
    assert isinstance(kronecker.posterior, KroneckerPosterior)
    assert (kronecker.ewc_lambda, kronecker.posterior.prior_variance) == (5.0, 3.0)


def test_strategies():
    strategies = {name: method.strategy for name, method in METHODS.items()}
    assert strategies.pop("joint") is JointTraining
    assert strategies.pop("hypernet") is HypernetTemplate
    assert set(strategies.values()) == {Naive}


@pytest.mark.parametrize("options", [SplitDigitsOptions, SplitMNISTOptions, PermutedMNISTOptions])
@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_every_comparison_has_its_strengths(options, scenario):
    filled = with_strengths(options(scenario=scenario))
    assert filled.ewc_lambda == METHODS["ewc"].strengths[options.experiment][scenario]
    assert filled.prior_ewc_lambda == METHODS["prior-ewc"].strengths[options.experiment][scenario]
    assert "experiment" not in {field.name for field in fields(options)}


def test_a_strength_that_is_missing_is_named_before_the_training(monkeypatch):
    method = Method(strengths={"split-mnist": {"task": 1.0}})
    assert method.strength("split-mnist", "task") == 1.0
    assert Method().strength("split-digits", "class") is None
    monkeypatch.setitem(METHODS, "naive", method)
    with pytest.raises(
        ValueError, match="one for split-digits, scenario domain, got those for split"
    ):
        with_strengths(SplitDigitsOptions(scenario="domain"))


def test_strengths_of_the_modes():
    options = GaussianMixtureOptions(ewc_lambda=3.0)
    strengths = {m: options.strength(m) for m in MODE_METHODS}
    assert strengths == {
        "hypernet": None,
        "prior-ewc": 3.0,
        "prior-ewc-kron": 3.0,
        "naive": None,
        "separate": 3.0,
    }
    assert GaussianMixtureOptions(structure="kronecker").methods == ("hypernet", "prior-ewc-kron")
