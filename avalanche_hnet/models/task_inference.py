"""A model that finds out by itself which task a sample belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from avalanche.models import MultiTaskModule
from torch import Tensor, nn

from avalanche_hnet.core.checks import at_least, one_of
from avalanche_hnet.core.likelihoods import Categorical, Gaussian, Likelihood
from avalanche_hnet.core.posterior import GaussianPosterior
from avalanche_hnet.core.predictive import PredictionMethod, Predictor
from avalanche_hnet.core.task_choice import InferenceCriterion, disagreement, doubt, entropy
from avalanche_hnet.core.task_statistics import TaskStatistics
from avalanche_hnet.models.hyper_model import HyperModel

# The logarithm of a probability of zero, as Avalanche masks logits.
_LOG_ZERO = -1000.0


class TaskInference(nn.Module):
    """Predicts under every task and returns, for each sample, what the surest of them says.

    Works on any multi-task model, such as a :class:`HyperModel` (each task's weights, all tasks in
    one batched pass) or a network with several heads, and is called without task labels. The
    choice is by

    - ``"entropy"``: the lowest entropy of the class probabilities (von Oswald et al. 2020, arXiv
      1906.00695, appendix C.2);
    - ``"confidence"``: the highest probability of a class;
    - ``"agreement"``: the least disagreement between networks drawn from the posterior: the
      standard deviation of their class probabilities, summed over classes (Henning et al. 2021,
      arXiv 2103.01133).

    In regression, where these do not exist, the task with the least epistemic variance is chosen,
    whatever the criterion; that needs a posterior.

    With ``posterior``, predictions are those of :func:`predict`.

    Args:
        model: called as ``model(x, task_label)`` with one label for all samples.
        criterion: see above.
        tasks: labels of the tasks to choose from; by default all that were trained on.
        posterior: of the model's parameters, from a :class:`PriorEWCPlugin`.
        method: how to predict from the posterior: ``"linearized"``, ``"sample"`` or ``"map"``.
        n_samples: draws from the posterior, for ``"agreement"`` and ``method="sample"``.
        likelihood: :class:`Categorical`, or :class:`Gaussian` for regression.
        classes: for each task label, the global class of each output; by default output c is
            class c in every task. For tasks that each count their classes from zero, in a
            class-incremental scenario.
        generator: makes the draws; by default PyTorch's global one.
        statistics: running statistics of each task, in place where the model predicts under it;
            from a :class:`TaskStatisticsPlugin`.

    Attributes:
        inferred_tasks: labels (B,) of the tasks that the last batch was assigned to.

    Raises:
        TypeError, ValueError: if an argument is out of its range, or ``criterion="agreement"`` or
            regression come without a posterior. When called: if there are no tasks yet, or
            ``statistics`` lacks one.
    """

    inferred_tasks: Tensor

    def __init__(
        self,
        model: nn.Module,
        criterion: InferenceCriterion = "entropy",
        *,
        tasks: Sequence[int] | None = None,
        posterior: GaussianPosterior | None = None,
        method: PredictionMethod = "linearized",
        n_samples: int = 30,
        likelihood: Likelihood | None = None,
        classes: Mapping[int, Sequence[int]] | None = None,
        generator: torch.Generator | None = None,
        statistics: TaskStatistics | None = None,
    ) -> None:
        one_of(InferenceCriterion, criterion=criterion)
        one_of(PredictionMethod, method=method)
        at_least(1, n_samples=n_samples)
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
        if posterior is not None and not isinstance(posterior, GaussianPosterior):
            raise TypeError(f"posterior must be a GaussianPosterior, got {posterior!r}")
        if statistics is not None and not isinstance(statistics, TaskStatistics):
            raise TypeError(f"statistics must be a TaskStatistics, got {statistics!r}")
        if statistics is not None and isinstance(model, HyperModel):
            raise ValueError("statistics is not for a HyperModel, which keeps those of each task")
        likelihood = Categorical() if likelihood is None else likelihood
        if not isinstance(likelihood, (Categorical, Gaussian)):
            raise TypeError(
                f"likelihood must be Categorical() or Gaussian(noise_std), got {likelihood!r}"
            )
        draws = criterion == "agreement" or isinstance(likelihood, Gaussian)
        if draws and (posterior is None or method == "map"):
            raise ValueError(
                f"criterion={criterion!r} with likelihood {likelihood!r} needs uncertain weights: "
                "a posterior, and a method other than 'map'"
            )
        if tasks is not None and (len(tasks) == 0 or len(set(tasks)) < len(tasks)):
            raise ValueError(f"tasks must name at least one task, each once, got {list(tasks)}")
        super().__init__()
        self.model = model
        self.criterion = criterion
        self.tasks = None if tasks is None else tuple(int(task) for task in tasks)
        self.posterior = posterior
        self.method = method
        self.n_samples = n_samples
        self.likelihood = likelihood
        self.classes = None if classes is None else {t: [*c] for t, c in classes.items()}
        self.generator = generator
        self.statistics = statistics
        self.inferred_tasks = torch.empty(0, dtype=torch.long)
        self.training = model.training

    @property
    def candidates(self) -> tuple[int, ...]:
        """Labels of the tasks to choose from.

        Raises:
            ValueError: if there are none.
        """
        candidates = self._trained_tasks() if self.tasks is None else self.tasks
        if not candidates:
            raise ValueError(
                "the model has not been trained on any task yet, or is not a multi-task model; "
                "name the tasks with tasks=[...]"
            )
        return candidates

    @property
    def is_ready(self) -> bool:
        """False as long as nothing has been trained on that there could be a choice among."""
        if self.posterior is not None and not self.posterior.mean:
            return False
        if self.statistics is not None and not self.statistics.task_labels:
            return False
        has_tasks = any(isinstance(module, MultiTaskModule) for module in self.model.modules())
        return self.tasks is not None or not has_tasks or bool(self._trained_tasks())

    def _trained_tasks(self) -> tuple[int, ...]:
        for module in self.model.modules():
            if isinstance(module, MultiTaskModule) and module.known_train_tasks_labels:
                return tuple(sorted(module.known_train_tasks_labels))
        return ()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """For ``x`` (B, …): logarithms of class probabilities (B, C), or in regression the mean.

        Classes that the chosen task does not have get −1000.
        """
        tasks = self.candidates
        self._require_statistics(tasks)
        if isinstance(self.likelihood, Gaussian):
            predictions, scores = self._regressions(x, tasks, self.likelihood)
        else:
            predictions, scores = self._classifications(x, tasks)
        chosen = scores.argmin(0)  # (B,), of scores (T, B)
        self.inferred_tasks = torch.tensor(tasks, device=chosen.device)[chosen]
        return predictions[chosen, torch.arange(len(chosen), device=chosen.device)]

    def _classifications(self, x: Tensor, tasks: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Log-probabilities (T, B, C) and scores (T, B), the lower the surer."""
        by_task = self._probabilities(x, tasks)
        if self.criterion == "entropy":
            scores = [entropy(p) for p in by_task]
        elif self.criterion == "confidence":
            scores = [doubt(p) for p in by_task]
        else:
            scores = [self._disagreement(x, task) for task in tasks]
        columns = [self._to_columns(task, p) for task, p in zip(tasks, by_task, strict=True)]
        n_columns = max(c.shape[1] for c in columns)
        padded = torch.stack([F.pad(c, (0, n_columns - c.shape[1])) for c in columns])
        logarithms = padded.log().clamp_min(_LOG_ZERO)
        return logarithms.to(x.dtype if x.is_floating_point() else None), torch.stack(scores)

    def _probabilities(self, x: Tensor, tasks: Sequence[int]) -> list[Tensor]:
        """Class probabilities (B, C) under each task, in float64."""
        if self.posterior is None and isinstance(self.model, HyperModel):
            return [*self.model.forward_tasks(x, tasks).double().softmax(2)]
        probabilities = []
        for task in tasks:
            with self._statistics_of(task):
                if self.posterior is not None:
                    probabilities.append(self._predictor(task).class_probabilities(x))
                else:
                    probabilities.append(self.model(x, task).double().softmax(1))
        return probabilities

    def _disagreement(self, x: Tensor, task: int) -> Tensor:
        with self._statistics_of(task):
            draws = self._predictor(task).draws(x)
            return disagreement(draw.double().softmax(1) for draw in draws)

    def _regressions(
        self, x: Tensor, tasks: Sequence[int], likelihood: Gaussian
    ) -> tuple[Tensor, Tensor]:
        """Means (T, B, …) and scores (T, B)."""
        found = []
        for task in tasks:
            with self._statistics_of(task):
                found.append(self._predictor(task).regression(x, likelihood))
        scores = [p.epistemic_variance.flatten(1).sum(1) for p in found]
        return torch.stack([p.mean for p in found]), torch.stack(scores)

    def _require_statistics(self, tasks: Sequence[int]) -> None:
        if self.statistics is None:
            return
        missing = [task for task in tasks if task not in self.statistics.task_labels]
        if missing:
            raise ValueError(
                f"statistics has none of task {missing[0]}, but of the tasks "
                f"{list(self.statistics.task_labels)}; name tasks that were trained on with "
                "tasks=[...]"
            )

    def _statistics_of(self, task: int) -> AbstractContextManager[None]:
        if self.statistics is None:
            return nullcontext()
        return self.statistics.using(self.model, task)

    def _predictor(self, task: int) -> Predictor:
        assert self.posterior is not None
        return Predictor(
            self.model, self.posterior, self.method, task, self.n_samples, self.generator
        )

    def _to_columns(self, task: int, probabilities: Tensor) -> Tensor:
        """Probabilities by global class."""
        if self.classes is None:
            return probabilities
        if task not in self.classes or len(self.classes[task]) != probabilities.shape[1]:
            raise ValueError(
                f"classes must give the global class of each of the {probabilities.shape[1]} "
                f"outputs of task {task}, got {self.classes.get(task)}"
            )
        n_columns = 1 + max(max(c) for c in self.classes.values())
        columns = probabilities.new_zeros(len(probabilities), n_columns)
        columns[:, self.classes[task]] = probabilities
        return columns
