"""Streams of one-dimensional regression tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, nan
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import CLScenario, benchmark_from_datasets, with_task_labels
from avalanche.benchmarks.utils import AvalancheDataset, ConstantSequence, TaskLabels
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

from avalanche_hnet.benchmarks.target_components import with_target_components
from avalanche_hnet.core.common.arguments import at_least, not_negative

Function = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def _line(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x + 3


def _parabola(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 2 * x**2 - 1


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return (x - 3) ** 3


def _left_cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return (x + 3) ** 3


def _falling_cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return -((x - 3) ** 3)


class Regression1D(CLScenario):
    """One experience for each function y = f(x) of a real number, on a domain of its own.

    The default is the toy problem of von Oswald et al. 2020, *Continual learning with
    hypernetworks* (arXiv 1906.00695): x + 3 on [-4, -2], 2x² − 1 on [-1, 1] and (x − 3)³ on
    [2, 4], in the authors' own data. :meth:`posterior_replay` has another.

    Training inputs are uniform on the domain, and training outputs have Gaussian noise. Test
    inputs are equidistant, the ends of the domain included, and test outputs are the function's
    own. A sample is x of shape (1,), y of shape (1,), both of PyTorch's default dtype, and a task
    label.

    Every task starts the random numbers anew from the same seed, as the authors did: the noise
    is the same in all, and so are the inputs, but for the domain.

    There are no classes here, and accuracy means nothing: take
    :func:`~avalanche_hnet.metrics.mse_metrics`. Models that ask for classes are told the number of
    the target's only component, ``classes_in_this_experience = [0]``
    (:func:`~avalanche_hnet.benchmarks.with_target_components`), so that heads have one unit:
    ``MultiHeadClassifier(in_features, initial_out_features=1)``, ``BlockMultiHeadClassifier``, or
    ``as_multitask`` of a network with one output.

    Args:
        functions: called with inputs (N, 1) in float64, return outputs (N, 1).
        domains: (low, high) for each function.
        noise_std: standard deviation of the noise on the training outputs.
        n_train: training samples per task.
        n_test: test samples per task.
        seed: of inputs and noise.
        return_task_id: give each experience its own task label, rather than 0 to all.

    Attributes:
        functions: the true functions, by experience.
        domains: their domains (low, high), by experience.

    Raises:
        TypeError: if a function cannot be called, or something else is given for a number.
        ValueError: if there is no function, or not one domain for each; if a domain is empty or
            not finite, or ``noise_std``, ``n_train`` or ``n_test`` is out of range; if a function
            returns another shape than (N, 1) or a value that is not finite.
    """

    def __init__(
        self,
        functions: Sequence[Function] = (_line, _parabola, _cubic),
        domains: Sequence[tuple[float, float]] = ((-4.0, -2.0), (-1.0, 1.0), (2.0, 4.0)),
        *,
        noise_std: float = 0.05,
        n_train: int = 100,
        n_test: int = 50,
        seed: int = 42,
        return_task_id: bool = True,
    ) -> None:
        if not len(functions) == len(domains) > 0:
            raise ValueError(
                "functions and domains must be equally many, at least one, "
                f"got {len(functions)} functions and {len(domains)} domains"
            )
        for index, function in enumerate(functions):
            if not callable(function):
                raise TypeError(f"functions[{index}] must be callable, got {function!r}")
        not_negative(noise_std=noise_std)
        at_least(1, n_train=n_train, n_test=n_test)
        self.functions = tuple(functions)
        self.domains = tuple(_interval(index, domain) for index, domain in enumerate(domains))
        train, test = [], []
        for index, (low, high) in enumerate(self.domains):
            label = index if return_task_id else 0
            rng = np.random.RandomState(seed)
            x = rng.uniform(low, high, size=(n_train, 1))
            noise = rng.normal(0, noise_std, size=(n_train, 1))
            train.append(_dataset(x, self._values(index, x) + noise, label))
            x = np.linspace(low, high, n_test)[:, None]
            test.append(_dataset(x, self._values(index, x), label))
        scenario = with_task_labels(benchmark_from_datasets(train=train, test=test))
        super().__init__(with_target_components(scenario).streams.values())

    @classmethod
    def posterior_replay(cls, *, n_train: int = 20, **options: Any) -> Regression1D:
        """The tasks of Henning et al. 2021, *Posterior meta-replay* (arXiv 2103.01133).

        (x + 3)³ on [-4, -2], 2x² − 1 on [-1, 1] and −(x − 3)³ on [2, 4], with 20 training samples
        each and noise of standard deviation 0.05, in the authors' own data (set 3 of their code).
        Neighbouring functions have the same value, 1, at the ends of their domains, which gives
        methods with a single output for all tasks a chance.

        Args:
            n_train: training samples per task.
            options: the other keyword arguments of the class.
        """
        return cls((_left_cubic, _parabola, _falling_cubic), n_train=n_train, **options)

    def _values(self, index: int, x: NDArray[np.float64]) -> NDArray[np.float64]:
        y = np.asarray(self.functions[index](x.copy()), dtype=np.float64)  # it may work in place
        if y.shape != x.shape:
            raise ValueError(
                f"functions[{index}] must return the shape of its inputs, {x.shape}, got {y.shape}"
            )
        if not np.isfinite(y).all():
            at = x[~np.isfinite(y)][0]
            raise ValueError(
                f"functions[{index}] must be finite on its domain {self.domains[index]}, "
                f"but is not at {at:.4g}"
            )
        return y


def _interval(index: int, domain: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = (float(end) for end in domain)
    except (TypeError, ValueError):
        low = high = nan
    if not -inf < low < high < inf:
        raise ValueError(
            f"domains[{index}] must be finite (low, high) with low < high, got {domain}"
        )
    return low, high


def _dataset(x: NDArray[np.float64], y: NDArray[np.float64], label: int) -> AvalancheDataset:
    dtype = torch.get_default_dtype()
    samples = TensorDataset(torch.as_tensor(x, dtype=dtype), torch.as_tensor(y, dtype=dtype))
    labels = TaskLabels(ConstantSequence(label, len(x)))
    return AvalancheDataset([samples], data_attributes=[labels])
