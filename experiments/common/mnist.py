"""MNIST, or one sentence that says why not."""

from __future__ import annotations

import sys
from pathlib import Path

from avalanche.benchmarks import SplitMNIST


def require_mnist(dataset_root: Path | None) -> None:
    """End the program with exit code 2 if MNIST is neither there nor can be downloaded."""
    try:
        SplitMNIST(1, dataset_root=dataset_root)
    except (OSError, RuntimeError):
        print(
            f"MNIST is not in {dataset_root or 'the default dataset root of Avalanche'} and could "
            "not be downloaded; put its four files into MNIST/raw of a folder and name that with "
            "--dataset-root.",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
