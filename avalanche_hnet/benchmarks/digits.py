"""Streams of scikit-learn's handwritten digits: real data that needs no download."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import NCScenario, nc_benchmark
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import Normalize

from avalanche_hnet.core.common.arguments import at_least, integer

_normalize = Normalize((0.3053,), (0.3761,))  # mean and standard deviation of the training pixels


def SplitDigits(  # noqa: N802 - named like Avalanche's own benchmarks
    n_experiences: int,
    *,
    return_task_id: bool = False,
    seed: int | None = None,
    fixed_class_order: Sequence[int] | None = None,
    shuffle: bool = True,
    class_ids_from_zero_in_each_exp: bool = False,
    class_ids_from_zero_from_first_exp: bool = False,
    train_transform: Any = _normalize,
    eval_transform: Any = _normalize,
) -> NCScenario:
    """The ten digits, split into experiences of different classes.

    Images are tensors (1, 8, 8) in [0, 1] before the transforms: 1,347 for training and 450 for
    testing, a fixed stratified split. Source: E. Alpaydin and C. Kaynak, *Optical Recognition
    of Handwritten Digits*, UCI Machine Learning Repository, 1998, as shipped with scikit-learn.

    The arguments are those of Avalanche's ``SplitMNIST``.

    Args:
        n_experiences: number of experiences; must divide 10.
        return_task_id: give each experience its own task label, rather than 0 to all.
        seed: of the class order; PyTorch's global state if None.
        fixed_class_order: the class order itself, instead of a random one.
        shuffle: whether to draw a random class order.
        class_ids_from_zero_in_each_exp: name the classes 0, 1, … anew in each experience.
        class_ids_from_zero_from_first_exp: name the classes 0, 1, … in order of appearance.
        train_transform: applied to training images; normalisation by default.
        eval_transform: applied to test images; normalisation by default.

    Returns:
        A benchmark whose ``train_stream`` and ``test_stream`` have ``n_experiences`` experiences
        each, of 10 / ``n_experiences`` classes.

    Raises:
        TypeError, ValueError: if ``n_experiences`` is not an integer that divides 10.
        ImportError: without scikit-learn.
    """
    integer("1, 2, 5 or 10", n_experiences=n_experiences)
    if n_experiences < 1 or 10 % n_experiences:
        raise ValueError(f"n_experiences must be 1, 2, 5 or 10, got {n_experiences}")
    train, test = _digits()
    return nc_benchmark(
        train_dataset=train,
        test_dataset=test,
        n_experiences=n_experiences,
        task_labels=return_task_id,
        seed=seed,
        fixed_class_order=fixed_class_order,
        shuffle=shuffle,
        class_ids_from_zero_in_each_exp=class_ids_from_zero_in_each_exp,
        class_ids_from_zero_from_first_exp=class_ids_from_zero_from_first_exp,
        train_transform=train_transform,
        eval_transform=eval_transform,
    )


def PermutedDigits(  # noqa: N802 - named like Avalanche's own benchmarks
    n_experiences: int,
    *,
    return_task_id: bool = False,
    seed: int | None = None,
    train_transform: Any = _normalize,
    eval_transform: Any = _normalize,
) -> NCScenario:
    """All ten digits in every experience, each time under another permutation of the pixels.

    The data are those of :func:`SplitDigits`, the arguments those of Avalanche's
    ``PermutedMNIST``. The transforms see permuted images.

    Args:
        n_experiences: number of permutations.
        return_task_id: give each experience its own task label, rather than 0 to all.
        seed: of the permutations.
        train_transform: applied to training images; normalisation by default.
        eval_transform: applied to test images; normalisation by default.

    Returns:
        A benchmark whose ``train_stream`` and ``test_stream`` have ``n_experiences`` experiences
        each, of all images and ten classes.

    Raises:
        TypeError, ValueError: if ``n_experiences`` is not an integer of at least 1.
        ImportError: without scikit-learn.
    """
    at_least(1, n_experiences=n_experiences)
    rng = np.random.RandomState(seed)
    train, test = _digits()
    permutations = [torch.from_numpy(rng.permutation(64)) for _ in range(n_experiences)]
    return nc_benchmark(
        train_dataset=[train.permuted(p) for p in permutations],
        test_dataset=[test.permuted(p) for p in permutations],
        n_experiences=n_experiences,
        task_labels=return_task_id,
        shuffle=False,
        class_ids_from_zero_in_each_exp=True,
        one_dataset_per_exp=True,
        train_transform=train_transform,
        eval_transform=eval_transform,
    )


class _Digits(Dataset[tuple[Tensor, int]]):
    def __init__(self, images: Tensor, targets: list[int]) -> None:
        self.images = images  # (N, 1, 8, 8)
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.targets[index]

    def permuted(self, permutation: Tensor) -> _Digits:
        images = self.images.flatten(1)[:, permutation].view_as(self.images)
        return _Digits(images, self.targets)


def _digits() -> tuple[_Digits, _Digits]:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(
            "the digits come with scikit-learn: pip install 'avalanche-hnet[digits]'"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels / 16).float().view(-1, 1, 8, 8)
    parts = train_test_split(np.arange(len(labels)), test_size=450, random_state=0, stratify=labels)
    train, test = (_Digits(images[part], labels[part].tolist()) for part in parts)
    return train, test
