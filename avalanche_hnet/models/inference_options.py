"""How the task of a sample is inferred: the arguments of task inference, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import wraps
from inspect import signature
from typing import Concatenate, ParamSpec, TypeVar

import torch

from avalanche_hnet.core.common.arguments import at_least, generator_or_none, one_of
from avalanche_hnet.core.common.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from avalanche_hnet.core.common.task_statistics import TaskStatistics
from avalanche_hnet.core.posterior.learned_likelihood import likelihood_to_predict_with
from avalanche_hnet.core.posterior.predictor import PredictionMethod
from avalanche_hnet.core.posterior.protocol import Posterior
from avalanche_hnet.core.posterior.task_criteria import InferenceCriterion

Options = TypeVar("Options")
Owner = TypeVar("Owner")
Arguments = ParamSpec("Arguments")


@dataclass(frozen=True)
class InferenceOptions:
    """The arguments of :class:`TaskInference` after the model, which documents them.

    Raises:
        TypeError, ValueError: if an argument is out of its range, or ``criterion="agreement"`` or
            regression come without a posterior.
    """

    criterion: InferenceCriterion = "entropy"
    _: KW_ONLY
    tasks: Sequence[int] | None = None
    posterior: Posterior | None = None
    method: PredictionMethod = "linearized"
    n_samples: int = 30
    likelihood: Likelihood | None = None
    classes: Mapping[int, Sequence[int]] | None = None
    generator: torch.Generator | None = None
    statistics: TaskStatistics | None = None

    def __post_init__(self) -> None:
        """Refuse what is out of range, and keep copies of what the user may change."""
        one_of(InferenceCriterion, criterion=self.criterion)
        one_of(PredictionMethod, method=self.method)
        at_least(1, n_samples=self.n_samples)
        generator_or_none(generator=self.generator)
        if self.posterior is not None and not isinstance(self.posterior, Posterior):
            raise TypeError(
                "posterior must be a GaussianPosterior or a KroneckerPosterior, got "
                f"{self.posterior!r}"
            )
        if self.statistics is not None and not isinstance(self.statistics, TaskStatistics):
            raise TypeError(f"statistics must be a TaskStatistics, got {self.statistics!r}")
        learned = likelihood_to_predict_with(self.likelihood, self.posterior)
        object.__setattr__(self, "likelihood", learned)
        if isinstance(self.likelihood, Bernoulli):
            raise ValueError(
                "task inference judges probabilities of classes or a regression, which a Bernoulli "
                "likelihood has not; evaluate with the benchmark's task labels"
            )
        if not isinstance(self.likelihood, (Categorical, Gaussian, type(None))):
            raise TypeError(
                f"likelihood must be Categorical() or Gaussian(noise_std), got {self.likelihood!r}"
            )
        self._check_draws()
        object.__setattr__(self, "tasks", _checked_tasks(self.tasks))
        if self.classes is not None:
            copies = {task: [*classes] for task, classes in self.classes.items()}
            object.__setattr__(self, "classes", copies)

    @property
    def judges_posterior(self) -> bool:
        """Whether tasks are chosen by the posterior itself, not by probabilities of classes."""
        return self.criterion == "agreement" or isinstance(self.likelihood, Gaussian)

    def _check_draws(self) -> None:
        if not self.judges_posterior:
            return
        if self.posterior is None or self.method == "map":
            is_regression = isinstance(self.likelihood, Gaussian)
            what = "regression" if is_regression else "criterion='agreement'"
            raise ValueError(
                f"{what} needs a posterior and a way to predict with its uncertainty: pass "
                "posterior=plugin.posterior of a PriorEWCPlugin, and method='linearized' or "
                f"'sample', got posterior={self.posterior!r}, method={self.method!r}"
            )
        is_drawn = self.criterion == "agreement" or self.method == "sample"
        if is_drawn and self.n_samples < 2:
            raise ValueError(f"n_samples must be at least 2 to have a spread, got {self.n_samples}")


def takes_arguments_of(
    make: Callable[Arguments, Options],
) -> Callable[[Callable[[Owner, Options], None]], Callable[Concatenate[Owner, Arguments], None]]:
    """Let a method that takes what ``make`` returns be called with the arguments of ``make``.

    They are the method's signature to type checkers and editors, and to ``inspect.signature``.
    """

    def decorate(
        method: Callable[[Owner, Options], None],
    ) -> Callable[Concatenate[Owner, Arguments], None]:
        @wraps(method)
        def call(owner: Owner, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
            method(owner, make(*args, **kwargs))

        of_method, taken = signature(method), signature(make)
        first = next(iter(of_method.parameters.values()))
        shown = of_method.replace(parameters=[first, *taken.parameters.values()])
        call.__signature__ = shown  # type: ignore[attr-defined]
        return call

    return decorate


def _checked_tasks(tasks: Sequence[int] | None) -> tuple[int, ...] | None:
    if tasks is None:
        return None
    if not isinstance(tasks, Iterable):
        raise TypeError(f"tasks must be a sequence of task labels or None, got {tasks!r}")
    if len(tasks) == 0 or len(set(tasks)) < len(tasks):
        raise ValueError(f"tasks must name at least one task, each once, got {list(tasks)}")
    return tuple(int(task) for task in tasks)
