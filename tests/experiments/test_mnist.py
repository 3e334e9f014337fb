"""The published numbers, on real data: minutes each, so run only with ``-m slow``."""

import json

import pytest
from avalanche.benchmarks.datasets import default_dataset_location

from experiments import permuted_mnist, split_mnist
from experiments.permuted_mnist import PermutedMNISTOptions
from experiments.split_mnist import SplitMNISTOptions

needs_mnist = pytest.mark.skipif(
    not (default_dataset_location("mnist") / "MNIST/raw/train-images-idx3-ubyte").exists(),
    reason="MNIST is not in Avalanche's default dataset root",
)


def average_accuracy(folder, method="prior-ewc", scenario="task"):
    (run,) = folder.iterdir()
    summary = json.loads((run / "summary.json").read_text())
    return summary["scenarios"][scenario]["methods"][method]["average_accuracy"]


@needs_mnist
@pytest.mark.parametrize(("method", "iterations"), [("prior-ewc", 30), ("hypernet", 150)])
def test_split_mnist_runs(method, iterations, tmp_path):
    split_mnist.main(
        SplitMNISTOptions(
            methods=(method,), seeds=1, iterations=iterations, output=tmp_path, device="cpu"
        )
    )
    assert average_accuracy(tmp_path, method) > 80


@needs_mnist
def test_classes_in_order_if_not_shuffled():
    for shuffle in (False, True):
        options = SplitMNISTOptions(scenario="class", shuffle_classes=shuffle)
        stream = split_mnist.make_benchmark(options, seed=0).train_stream
        order = [sorted(e.classes_in_this_experience) for e in stream]
        assert (order == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]) == (not shuffle)


@pytest.mark.slow
@needs_mnist
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("hidden", "accuracy"), [((100, 100), 98.5), ((400, 400), 99.1)])
def test_split_mnist_task_incremental(hidden, accuracy, tmp_path):
    split_mnist.main(SplitMNISTOptions(methods=("prior-ewc",), hidden=hidden, output=tmp_path))
    assert average_accuracy(tmp_path) >= accuracy


HYPERNET = {
    "methods": ("hypernet",),
    "hidden": (400, 400),
    "batch_size": 128,
    "input_noise": 1.0,
    "shuffle_classes": False,
}


@pytest.mark.slow
@needs_mnist
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("scenario", "accuracy"), [("task", 99.79), ("domain", 87.0), ("class", 69.5)]
)
def test_split_mnist_through_a_hypernetwork(scenario, accuracy, tmp_path):
    split_mnist.main(SplitMNISTOptions(scenario=scenario, output=tmp_path, **HYPERNET))
    assert average_accuracy(tmp_path, "hypernet", scenario) >= accuracy


@pytest.mark.slow
@needs_mnist
@pytest.mark.timeout(3600)
def test_split_mnist_with_separate_heads_and_the_task_inferred(tmp_path):
    split_mnist.main(
        SplitMNISTOptions(
            methods=("prior-ewc",),
            scenario="class",
            head="separate",
            prediction="map",
            shuffle_classes=False,
            output=tmp_path,
        )
    )
    assert average_accuracy(tmp_path, scenario="class") >= 47.7


@pytest.mark.slow
@needs_mnist
@pytest.mark.timeout(7200)
def test_permuted_mnist_through_a_hypernetwork(tmp_path):
    options = {"iterations": 2000, "input_noise": 1.0, "seeds": 1}
    permuted_mnist.main(PermutedMNISTOptions(methods=("hypernet",), output=tmp_path, **options))
    assert average_accuracy(tmp_path, "hypernet", "domain") >= 92.8


@pytest.mark.slow
@needs_mnist
@pytest.mark.timeout(7200)
def test_permuted_mnist_domain_incremental(tmp_path):
    permuted_mnist.main(PermutedMNISTOptions(methods=("prior-ewc",), output=tmp_path))
    assert average_accuracy(tmp_path, scenario="domain") >= 94.4
