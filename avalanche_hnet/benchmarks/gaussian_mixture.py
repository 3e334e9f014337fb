"""A stream of classification tasks whose classes are Gaussian modes in the plane."""

from __future__ import annotations

from math import pi

import numpy as np
import torch
from avalanche.benchmarks import CLScenario, benchmark_from_datasets, with_task_labels
from avalanche.benchmarks.scenarios.supervised import with_classes_timeline
from avalanche.benchmarks.utils import (
    AvalancheDataset,
    ConstantSequence,
    DataAttribute,
    TaskLabels,
)
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

from avalanche_hnet.core.common.arguments import at_least, not_negative, positive


class GaussianMixture2D(CLScenario):
    """Tell neighbouring Gaussian modes on a circle apart, some in each experience.

    The two-dimensional mode classification of Henning et al. 2021, *Posterior meta-replay for
    continual learning* (arXiv 2103.01133), with the authors' numbers by default: six modes, of
    which each of three experiences has two. Mode i of M lies at the angle a = (i + ½) 2π / M,
    with mean (r sin a, r cos a) and covariance s² I, and is a class.

    A sample is x of shape (2,) and PyTorch's default dtype, an integer class label, and a task
    label. The tasks are far apart, so a model that knows what it has not seen can tell which one
    a sample comes from.

    Training and test data have random numbers of their own, so neither depends on the size of
    the other.

    Args:
        n_tasks: number of experiences.
        modes_per_task: modes, which are classes, of each experience.
        radius: r, of the circle.
        std: s, of each mode in each direction.
        n_train: training samples per mode.
        n_test: test samples per mode.
        seed: of the samples.
        return_task_id: give each experience its own task label, rather than 0 to all.
        class_ids_from_zero_in_each_exp: name the classes 0, 1, … anew in each experience; by
            default mode i is class i.

    Attributes:
        means: the modes' means (n_tasks, modes_per_task, 2), by experience.
        std: their standard deviation.

    Raises:
        TypeError, ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        n_tasks: int = 3,
        modes_per_task: int = 2,
        *,
        radius: float = 5.0,
        std: float = 0.2,
        n_train: int = 10,
        n_test: int = 100,
        seed: int = 0,
        return_task_id: bool = True,
        class_ids_from_zero_in_each_exp: bool = False,
    ) -> None:
        at_least(1, n_tasks=n_tasks, modes_per_task=modes_per_task, n_train=n_train, n_test=n_test)
        at_least(0, seed=seed)
        not_negative(std=std)
        positive(radius=radius)
        n_modes = n_tasks * modes_per_task
        angles = (np.arange(n_modes) + 0.5) * 2 * pi / n_modes
        circle = np.stack([np.sin(angles), np.cos(angles)], axis=1)
        self.means: NDArray[np.float64] = radius * circle.reshape(n_tasks, modes_per_task, 2)
        self.std: float = float(std)

        streams = []
        for child, n in zip(np.random.SeedSequence(seed).spawn(2), (n_train, n_test), strict=True):
            rng = np.random.default_rng(child)
            noise = rng.normal(0, std, size=(n_tasks, modes_per_task, n, 2))
            streams.append(
                [
                    _dataset(
                        x,
                        0 if class_ids_from_zero_in_each_exp else task * modes_per_task,
                        task if return_task_id else 0,
                    )
                    for task, x in enumerate(self.means[:, :, None] + noise)
                ]
            )
        train, test = streams
        scenario = with_task_labels(benchmark_from_datasets(train=train, test=test))
        super().__init__(with_classes_timeline(scenario).streams.values())


def _dataset(x: NDArray[np.float64], first_class: int, label: int) -> AvalancheDataset:
    """Samples ``x`` (modes, samples of each, 2), of classes that count up from the first one."""
    classes = torch.arange(first_class, first_class + len(x)).repeat_interleave(x.shape[1])
    inputs = torch.as_tensor(x.reshape(-1, 2), dtype=torch.get_default_dtype())
    return AvalancheDataset(
        [TensorDataset(inputs, classes)],
        data_attributes=[
            DataAttribute(classes.tolist(), "targets"),
            TaskLabels(ConstantSequence(label, len(classes))),
        ],
    )
