"""A model that finds out by itself which task a sample belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from avalanche.models import MultiTaskModule
from torch import Tensor, nn

from avalanche_hnet.core.common.evaluation import evaluating
from avalanche_hnet.core.common.likelihoods import Gaussian, Likelihood
from avalanche_hnet.core.common.masking import MASK_VALUE
from avalanche_hnet.core.common.samples import as_samples
from avalanche_hnet.core.common.task_statistics import TaskStatistics
from avalanche_hnet.core.posterior.predictor import PredictionMethod
from avalanche_hnet.core.posterior.protocol import Posterior
from avalanche_hnet.core.posterior.task_criteria import InferenceCriterion, doubt, entropy
from avalanche_hnet.models.hyper_model import HyperModel
from avalanche_hnet.models.inference_options import InferenceOptions
from avalanche_hnet.models.predictions_by_task import (
    class_probabilities,
    disagreements,
    regressions,
)


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

    In regression, where these do not exist, it is the task with the least epistemic variance,
    whatever the criterion; that needs a posterior.

    With ``posterior``, predictions are those of :func:`predict`. The model runs in evaluation mode.

    Args:
        model: called as ``model(x, task_label)`` with one label for all samples.
        criterion: see above.
        tasks: labels of the tasks to choose from; by default all that were trained on.
        posterior: of the model's parameters, from a :class:`PriorEWCPlugin`.
        method: how to predict from the posterior: ``"linearized"``, ``"sample"`` or ``"map"``.
        n_samples: draws from the posterior, for ``"agreement"`` and ``method="sample"``.
        likelihood: :class:`Categorical`, or :class:`Gaussian` for regression; by default the one
            that the posterior was learned with. Multi-label predictions cannot be judged.
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
        posterior: Posterior | None = None,
        method: PredictionMethod = "linearized",
        n_samples: int = 30,
        likelihood: Likelihood | None = None,
        classes: Mapping[int, Sequence[int]] | None = None,
        generator: torch.Generator | None = None,
        statistics: TaskStatistics | None = None,
    ) -> None:
        options = InferenceOptions(
            criterion,
            tasks=tasks,
            posterior=posterior,
            method=method,
            n_samples=n_samples,
            likelihood=likelihood,
            classes=classes,
            generator=generator,
            statistics=statistics,
        )
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
        if statistics is not None and isinstance(model, HyperModel):
            raise ValueError("statistics is not for a HyperModel, which keeps those of each task")
        super().__init__()
        self.model = model
        self.options = options
        self.inferred_tasks = torch.empty(0, dtype=torch.long)

    @property
    def candidates(self) -> tuple[int, ...]:
        """Labels of the tasks to choose from.

        Raises:
            ValueError: if there are none.
        """
        self.refuse_single_task()
        trained = self._trained_tasks()
        candidates = trained if self.options.tasks is None else tuple(self.options.tasks)
        if not candidates:
            raise ValueError(
                "the model has not been trained on any task yet; name the tasks with tasks=[...]"
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
        posterior, statistics = self.options.posterior, self.options.statistics
        if posterior is not None and not posterior.mean:
            return False
        if statistics is not None and not statistics.task_labels:
            return False
        known = self.options.tasks is not None or bool(self._trained_tasks())
        return known or not self._is_multi_task()

    def refuse_single_task(self) -> None:
        """Refuse a model that knows no tasks, where none are named either.

        Raises:
            ValueError: naming what would do.
        """
        if self.options.tasks is None and not self._is_multi_task():
            raise ValueError(
                f"{type(self.model).__name__} is not a multi-task model: it gives the same outputs "
                "for every task, so that there is nothing to infer; give it a head for each task "
                "(as_multitask, BlockMultiHeadClassifier), make it a HyperModel, or leave the task "
                "inference out"
            )

    def _multi_task_modules(self) -> list[MultiTaskModule]:
        return [m for m in self.model.modules() if isinstance(m, MultiTaskModule)]

    def _is_multi_task(self) -> bool:
        return bool(self._multi_task_modules())

    def _trained_tasks(self) -> tuple[int, ...]:
        labels = [m.known_train_tasks_labels for m in self._multi_task_modules()]
        return tuple(sorted(set().union(*labels)))

    @torch.no_grad()
    def forward(self, x: Any) -> Tensor:
        """Logarithms of class probabilities (B, C), or in regression the mean, for ``x`` (B, …).

        ``x`` is a tensor or a mapping, tuple or dataclass of tensors. Classes that the chosen task
        does not have get −1000.
        """
        tasks = self.candidates
        self._require_statistics(tasks)
        with evaluating(self.model.modules()):
            if isinstance(self.options.likelihood, Gaussian):
                predictions, scores = self._regressions(x, tasks, self.options.likelihood)
            else:
                predictions, scores = self._classifications(x, tasks)
        chosen = scores.nan_to_num(nan=inf).argmin(0)  # (B,), of scores (T, B)
        self.inferred_tasks = torch.tensor(tasks, device=chosen.device)[chosen]
        return predictions[chosen, torch.arange(len(chosen), device=chosen.device)]

    def _classifications(self, x: Any, tasks: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Log-probabilities (T, B, C) and scores (T, B), the lower the surer."""
        by_task = class_probabilities(self.model, self.options, x, tasks)
        if by_task[0].dim() != 2 or by_task[0].shape[1] < 2:
            raise ValueError(
                "model must give logits (B, C) of at least two classes, got outputs of shape "
                f"{tuple(by_task[0].shape)}; for regression pass likelihood=Gaussian(noise_std)"
            )
        if self.options.criterion == "entropy":
            scores = [entropy(p) for p in by_task]
        elif self.options.criterion == "confidence":
            scores = [doubt(p) for p in by_task]
        else:
            scores = disagreements(self.model, self.options, x, tasks)
        logarithms = self._columns(tasks, by_task).log().clamp_min(MASK_VALUE)
        inputs = as_samples(x)
        dtype = inputs.dtype if inputs.is_floating_point() else None
        return logarithms.to(dtype), torch.stack(scores)

    def _regressions(
        self, x: Any, tasks: Sequence[int], likelihood: Gaussian
    ) -> tuple[Tensor, Tensor]:
        """Means (T, B, …) and scores (T, B)."""
        predictions = regressions(self.model, self.options, x, tasks, likelihood)
        scores = [p.epistemic_variance.flatten(1).sum(1) for p in predictions]
        return torch.stack([p.mean for p in predictions]), torch.stack(scores)

    def _columns(self, tasks: Sequence[int], by_task: Sequence[Tensor]) -> Tensor:
        """Probabilities (T, B, C) by global class, from those of each task's outputs."""
        classes = self.options.classes
        if classes is not None:
            columns = [
                _to_columns(task, p, classes) for task, p in zip(tasks, by_task, strict=True)
            ]
            return torch.stack(columns)
        # Heads of earlier tasks may be narrower than labels of later ones need.
        widths = [p.shape[1] for p in by_task]
        n_columns = max(widths + [m.max_class_label for m in self._multi_task_modules()])
        return torch.stack([F.pad(p, (0, n_columns - p.shape[1])) for p in by_task])

    def _require_statistics(self, tasks: Sequence[int]) -> None:
        statistics = self.options.statistics
        if statistics is None:
            return
        missing = [task for task in tasks if task not in statistics.task_labels]
        if missing:
            raise ValueError(
                f"statistics has none of task {missing[0]}, but of the tasks "
                f"{list(statistics.task_labels)}; name tasks that were trained on with "
                "tasks=[...]"
            )


def _to_columns(task: int, probabilities: Tensor, classes: Mapping[int, Sequence[int]]) -> Tensor:
    """Probabilities by global class."""
    if task not in classes or len(classes[task]) != probabilities.shape[1]:
        raise ValueError(
            f"classes must give the global class of each of the {probabilities.shape[1]} "
            f"outputs of task {task}, got {classes.get(task)}"
        )
    n_columns = 1 + max(max(c) for c in classes.values())
    columns = probabilities.new_zeros(len(probabilities), n_columns)
    columns[:, classes[task]] = probabilities
    return columns
