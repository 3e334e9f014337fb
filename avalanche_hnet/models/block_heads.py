"""One output layer with a block of units per task."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from avalanche.benchmarks import CLExperience
from avalanche.models import MultiTaskModule
from torch import Tensor, nn
from torch.nn.utils import skip_init

from avalanche_hnet.core.common.arguments import at_least
from avalanche_hnet.core.common.masking import MASK_VALUE
from avalanche_hnet.data.experiences import classes_of, labels_of, tasks_and_classes


class BlockMultiHeadClassifier(MultiTaskModule):
    """One linear output layer that holds one block of units per task.

    A task's block has one unit for each of its classes, added when the task, or the class, is
    first trained on. The output (B, C) has a column for each class label up to the highest one
    of any experience so far; columns of classes that a sample's task does not have hold
    ``mask_value``. So class labels may start from zero in each task or be unique over tasks,
    mini-batches may mix tasks, and the outputs of a task that was never trained on are all
    ``mask_value``.

    In regression the components of a target, counted from 0, take the place of the classes: the
    block has a unit for each, and the output (B, D) has the shape of targets (D,).

    It is called with task labels and can stand anywhere in a model, like Avalanche's
    ``MultiHeadClassifier``. The difference is that all heads are rows of one weight matrix, as
    in von Oswald et al. 2020 (arXiv 1906.00695) and Henning et al. 2021 (arXiv 2103.01133).

    Since the heads are one parameter, an optimizer with momentum or weight decay also moves the
    rows of tasks that are not being trained; reset its state at each experience.

    Args:
        in_features: number of input features.
        mask_value: the output for classes of other tasks.

    Raises:
        TypeError, ValueError: if ``in_features`` is not an integer of at least 1.
    """

    max_class_label: int
    known_train_tasks_labels: set[int]
    unit_tasks: Tensor  # (U,), the task label of each output unit
    unit_classes: Tensor  # (U,), the class label of each output unit

    def __init__(self, in_features: int, mask_value: float = MASK_VALUE) -> None:
        super().__init__()
        at_least(1, in_features=in_features)
        self.mask_value = mask_value
        self.classifier = _linear(torch.empty(0, in_features), torch.empty(0))
        self.register_buffer("unit_tasks", torch.zeros(0, dtype=torch.long))
        self.register_buffer("unit_classes", torch.zeros(0, dtype=torch.long))

    def adaptation(self, experience: CLExperience) -> None:
        """Add the units of the experience's tasks and classes that are new, if training."""
        # Not by super(): it asks for classes, which experiences of a regression may not have.
        self.max_class_label = max(self.max_class_label, max(classes_of(experience)) + 1)
        if not self.training:
            return
        self.known_train_tasks_labels = self.known_train_tasks_labels | {*labels_of(experience)}
        present = set(zip(self.unit_tasks.tolist(), self.unit_classes.tolist(), strict=True))
        new = sorted(tasks_and_classes(experience) - present)
        if new:
            tasks, classes = torch.tensor(new).to(self.unit_tasks).T
            old = self.classifier
            fresh = nn.Linear(old.in_features, len(new)).to(old.weight)
            self.classifier = _linear(
                torch.cat([old.weight, fresh.weight]), torch.cat([old.bias, fresh.bias])
            )
            self.unit_tasks = torch.cat([self.unit_tasks, tasks])
            self.unit_classes = torch.cat([self.unit_classes, classes])

    def forward(self, x: Tensor, task_labels: Tensor | int | None) -> Any:
        """Logits (B, C) of features ``x`` (B, in_features) for task labels (B,) or one label.

        Without labels (None): logits by task label, for all tasks that were trained on.
        """
        if task_labels is None:
            return self.forward_all_tasks(x)
        labels = torch.as_tensor(task_labels, device=x.device).expand(len(x))
        units = self.classifier(x)  # (B, U)
        is_of_task = self.unit_tasks == labels[:, None]  # (B, U)
        to_class = F.one_hot(self.unit_classes, self.max_class_label).to(units)  # (U, C)
        logits = units.where(is_of_task, 0) @ to_class
        return logits.where(is_of_task.to(units) @ to_class > 0, self.mask_value)

    def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
        """Logits (B, C) of features ``x`` (B, in_features), all of one task."""
        logits: Tensor = self(x, task_label)
        return logits

    def forward_all_tasks(self, x: Tensor) -> dict[int, Tensor]:
        """Logits (B, C) of features ``x`` by task label, for all tasks that were trained on."""
        return {t: self.forward_single_task(x, t) for t in self.unit_tasks.unique().tolist()}

    def active_elements(self, experience: CLExperience) -> dict[str, Tensor]:
        """The rows of the experience's tasks."""
        tasks = torch.tensor(labels_of(experience)).to(self.unit_tasks)
        rows = torch.isin(self.unit_tasks, tasks)
        return {"classifier.weight": rows[:, None], "classifier.bias": rows}

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        saved = state_dict.get(f"{prefix}unit_tasks")
        if saved is not None and len(saved) != len(self.unit_tasks):
            weight = self.classifier.weight
            self.classifier = _linear(
                weight.new_empty(len(saved), weight.shape[1]), weight.new_empty(len(saved))
            )
            self.unit_tasks = self.unit_tasks.new_zeros(len(saved))
            self.unit_classes = self.unit_classes.new_zeros(len(saved))
            classes = state_dict[f"{prefix}unit_classes"]
            self.max_class_label = max([self.max_class_label, *(classes + 1).tolist()])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if saved is not None:
            self.known_train_tasks_labels = self.known_train_tasks_labels | {*saved.tolist()}


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = skip_init(nn.Linear, weight.shape[1], 1)
    layer.weight, layer.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    layer.out_features = len(bias)
    return layer
