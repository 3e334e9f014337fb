"""A model that finds out by itself which task a sample belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import inf

import torch
import torch.nn.functional as F
from avalanche.models import MultiTaskModule
from torch import Tensor, nn

from avalanche_hnet.core.common.arguments import at_least, one_of
from avalanche_hnet.core.common.evaluation import evaluating
from avalanche_hnet.core.common.likelihoods import Categorical, Gaussian, Likelihood
from avalanche_hnet.core.common.masking import MASK_VALUE
from avalanche_hnet.core.common.task_statistics import TaskStatistics
from avalanche_hnet.core.posterior.gaussian import GaussianPosterior
from avalanche_hnet.core.posterior.predict import PredictionMethod, Predictor, fitted
from avalanche_hnet.core.posterior.task_criteria import (
    InferenceCriterion,
    disagreement,
    doubt,
    entropy,
)
from avalanche_hnet.models.hyper_model import HyperModel


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

    With ``posterior``, predictions are those of :func:`predict`. The model runs in evaluation mode.

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
        generator: makes the draws; by default one with PyTorch's initial seed.
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
            what = "regression" if isinstance(likelihood, Gaussian) else "criterion='agreement'"
            raise ValueError(
                f"{what} needs a posterior and a way to predict with its uncertainty: pass "
                "posterior=plugin.posterior of a PriorEWCPlugin, and method='linearized' or "
                f"'sample', got posterior={posterior!r}, method={method!r}"
            )
        if draws and (criterion == "agreement" or method == "sample") and n_samples < 2:
            raise ValueError(f"n_samples must be at least 2 to have a spread, got {n_samples}")
        if tasks is not None and not isinstance(tasks, Iterable):
            raise TypeError(f"tasks must be a sequence of task labels or None, got {tasks!r}")
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

    @property
    def candidates(self) -> tuple[int, ...]:
        """Labels of the tasks to choose from.

        Raises:
            ValueError: if there are none.
        """
        trained = self._trained_tasks()
        candidates = trained if self.tasks is None else self.tasks
        if not candidates:
            raise ValueError(
                "the model has not been trained on any task yet; name the tasks with tasks=[...]"
                if self._is_multi_task()
                else "the model is not a multi-task model: it gives the same outputs for every "
                "task, so that there is nothing to infer"
            )
        untrained = {*candidates} - {*trained}
        if trained and untrained:
            raise ValueError(
                f"tasks names {sorted(untrained)}, which were not trained on; those that were are "
                f"{list(trained)}"
            )
        return candidates

    @property
    def is_ready(self) -> bool:
        """False as long as nothing has been trained on that there could be a choice among."""
        if self.posterior is not None and not self.posterior.mean:
            return False
        if self.statistics is not None and not self.statistics.task_labels:
            return False
        known = self.tasks is not None or bool(self._trained_tasks())
        return known or not self._is_multi_task()

    def _multi_task_modules(self) -> list[MultiTaskModule]:
        return [m for m in self.model.modules() if isinstance(m, MultiTaskModule)]

    def _is_multi_task(self) -> bool:
        return bool(self._multi_task_modules())

    def _trained_tasks(self) -> tuple[int, ...]:
        labels = [m.known_train_tasks_labels for m in self._multi_task_modules()]
        return tuple(sorted(set().union(*labels)))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """For ``x`` (B, …): logarithms of class probabilities (B, C), or in regression the mean.

        Classes that the chosen task does not have get −1000.
        """
        tasks = self.candidates
        self._require_statistics(tasks)
        with evaluating(self.model.modules()):
            if isinstance(self.likelihood, Gaussian):
                predictions, scores = self._regressions(x, tasks, self.likelihood)
            else:
                predictions, scores = self._classifications(x, tasks)
        chosen = scores.nan_to_num(nan=inf).argmin(0)  # (B,), of scores (T, B)
        self.inferred_tasks = torch.tensor(tasks, device=chosen.device)[chosen]
        return predictions[chosen, torch.arange(len(chosen), device=chosen.device)]

    def _classifications(self, x: Tensor, tasks: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Log-probabilities (T, B, C) and scores (T, B), the lower the surer."""
        by_task = self._probabilities(x, tasks)
        if by_task[0].dim() != 2 or by_task[0].shape[1] < 2:
            raise ValueError(
                "model must give logits (B, C) of at least two classes, got outputs of shape "
                f"{tuple(by_task[0].shape)}; for regression pass likelihood=Gaussian(noise_std)"
            )
        if self.criterion == "entropy":
            scores = [entropy(p) for p in by_task]
        elif self.criterion == "confidence":
            scores = [doubt(p) for p in by_task]
        else:
            scores = self._disagreements(x, tasks)
        columns = [self._to_columns(task, p) for task, p in zip(tasks, by_task, strict=True)]
        # Heads of earlier tasks may be narrower than labels of later ones need.
        n_columns = max(c.shape[1] for c in columns)
        if self.classes is None:
            n_columns = max([n_columns, *(m.max_class_label for m in self._multi_task_modules())])
        padded = torch.stack([F.pad(c, (0, n_columns - c.shape[1])) for c in columns])
        logarithms = padded.log().clamp_min(MASK_VALUE)
        return logarithms.to(x.dtype if x.is_floating_point() else None), torch.stack(scores)

    def _probabilities(self, x: Tensor, tasks: Sequence[int]) -> list[Tensor]:
        """Class probabilities (B, C) under each task, in float64."""
        if self.posterior is None and isinstance(self.model, HyperModel):
            return [*self.model.forward_tasks(x, tasks).double().softmax(2)]
        probabilities = []
        predictors = self._predictors(tasks)
        for task in tasks:
            with self._statistics_of(task):
                if predictors:
                    probabilities.append(predictors[task].class_probabilities(x))
                else:
                    probabilities.append(self.model(x, task).double().softmax(1))
        return probabilities

    def _disagreements(self, x: Tensor, tasks: Sequence[int]) -> list[Tensor]:
        scores = []
        for task, predictor in self._predictors(tasks).items():
            with self._statistics_of(task):
                scores.append(disagreement(d.double().softmax(1) for d in predictor.draws(x)))
        return scores

    def _regressions(
        self, x: Tensor, tasks: Sequence[int], likelihood: Gaussian
    ) -> tuple[Tensor, Tensor]:
        """Means (T, B, …) and scores (T, B)."""
        found = []
        for task, predictor in self._predictors(tasks).items():
            with self._statistics_of(task):
                found.append(predictor.regression(x, likelihood))
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

    def _predictors(self, tasks: Sequence[int]) -> dict[int, Predictor]:
        """One for each task; none without a posterior."""
        if self.posterior is None:
            return {}
        posterior = fitted(self.posterior, self.model)
        return {
            task: Predictor(
                self.model, posterior, self.method, task, self.n_samples, self.generator
            )
            for task in tasks
        }

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
