from dataclasses import replace
from typing import get_args

import pytest
import torch
from avalanche.logging import TensorboardLogger
from torch import nn

from avalanche_hnet import InMemoryPlugin, PriorEWCPlugin
from avalanche_hnet.benchmarks import PermutedDigits, SplitDigits
from experiments import regression_uncertainty, split_digits, toy_regression
from experiments.common.comparison.learning import make_strategy
from experiments.common.comparison.networks import make_model
from experiments.common.in_memory import in_memory
from experiments.common.modes import learning as mode_learning
from experiments.common.modes.options import GaussianMixtureOptions, ModeMethod
from experiments.split_digits import SplitDigitsOptions


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
