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


def average_accuracy(folder):
    (run,) = folder.iterdir()
    summary = json.loads((run / "summary.json").read_text())
    return summary["methods"]["prior-ewc"]["average_accuracy"]


@needs_mnist
def test_split_mnist_runs(tmp_path):
    split_mnist.main(
        SplitMNISTOptions(
            methods=("prior-ewc",), seeds=1, iterations=30, output=tmp_path, device="cpu"
        )
    )
    assert average_accuracy(tmp_path) > 80


@pytest.mark.slow
@needs_mnist
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("hidden", "accuracy"), [((100, 100), 98.5), ((400, 400), 99.1)])
def test_split_mnist_task_incremental(hidden, accuracy, tmp_path):
    split_mnist.main(SplitMNISTOptions(methods=("prior-ewc",), hidden=hidden, output=tmp_path))
    assert average_accuracy(tmp_path) >= accuracy


@pytest.mark.slow
@needs_mnist
@pytest.mark.timeout(7200)
def test_permuted_mnist_domain_incremental(tmp_path):
    permuted_mnist.main(PermutedMNISTOptions(methods=("prior-ewc",), output=tmp_path))
    assert average_accuracy(tmp_path) >= 94.4
