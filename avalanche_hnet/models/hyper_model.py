"""A main network whose weights a hypernetwork generates, as a model for Avalanche."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import index
from typing import Any, TypeVar

import torch
from avalanche.benchmarks import CLExperience
from torch import Tensor, nn

from avalanche_hnet.core.common.arguments import one_of
from avalanche_hnet.core.common.evaluation import evaluating
from avalanche_hnet.core.common.logits import logits_of
from avalanche_hnet.core.common.masking import MASK_VALUE
from avalanche_hnet.core.common.samples import as_samples, joined, structure_of
from avalanche_hnet.core.hypernetworks.network import HyperNetwork
from avalanche_hnet.data.experiences import labels_of, stated_classes, tasks_and_classes
from avalanche_hnet.models.generated_weights import GeneratedWeights
from avalanche_hnet.models.main_network import require_fit
from avalanche_hnet.models.multi_task_model import MultiTaskModel
from avalanche_hnet.models.network_description import (
    check_extra_state,
    description,
    require_same_network,
)
from avalanche_hnet.models.network_runner import NetworkRunner, Remaining
from avalanche_hnet.models.output_heads import make_heads

T = TypeVar("T")

# Where the hypernetwork and what belongs to single tasks are among the model's modules.
_HYPERNETWORK, _NETWORKS = "hypernetwork.", "networks."


class HyperModel(MultiTaskModel):
    """``target`` with the weights that ``hypernetwork`` generates for each sample's task.

    Works like any multi-task model of Avalanche: ``model(x, task_labels)``, and embeddings are
    added when a strategy adapts it to an experience with a new task label, in training or in
    evaluation. The target itself is copied and may be any module of fixed size; the copy keeps no
    weights of its own where they are generated. In evaluation mode and without gradients, weights
    are generated once for each task, and for each group of tasks in one batch, and kept until
    anything that they depend on changes.

    Buffers of the target, such as running statistics of batch normalisation, are kept for each
    task; a task starts with those of ``target``.

    Args:
        target: the main network.
        hypernetwork: made for this target. It may generate a part of the parameters only.
        remaining: what happens to parameters that require grad and are not generated: ``"shared"``,
            trained by all tasks, which no regulariser of the hypernetwork protects;
            ``"per_task"``, each task trains a copy of its own; ``"frozen"`` (buffers, such as
            running statistics, still follow the data); or ``"frozen_after_first"``, trained in
            the first experience only (Hemati et al. 2023, arXiv 2306.10724).
        multi_head: by default, each task generates a head of its own, and the model's outputs are
            the target's: column c for class c. With ``multi_head``, the target has one wide output
            layer, of which each pair of task and class (in regression: component of the target)
            takes a unit when it is first trained on. The outputs (B, C) have a column for each
            class label up to the highest so far, and ``mask_value`` in those that the sample's
            task does not have.
        reuse_units: with ``multi_head``, let each task begin with the first unit again, which
            generates weights of its own for it. So the target needs as many outputs only as a task
            has classes, whatever their labels.
        output_layer: name of the target's output layer, for ``multi_head``; by default its last
            linear layer.
        mask_value: see ``multi_head``.

    Raises:
        TypeError, ValueError: if the hypernetwork does not fit the target, the target grows with
            the experiences, or has no output layer of the given name.
    """

    def __init__(
        self,
        target: nn.Module,
        hypernetwork: HyperNetwork,
        *,
        remaining: Remaining = "shared",
        multi_head: bool = False,
        reuse_units: bool = False,
        output_layer: str | None = None,
        mask_value: float = MASK_VALUE,
    ) -> None:
        one_of(Remaining, remaining=remaining)
        require_fit(target, hypernetwork)
        super().__init__()
        self.units = make_heads(
            target,
            hypernetwork.layout,
            multi_head=multi_head,
            reuse_units=reuse_units,
            output_layer=output_layer,
            mask_value=mask_value,
        )
        self.remaining: Remaining = remaining
        self.multi_head = multi_head
        self.mask_value = mask_value
        self.generated_heads = self.units.generated
        self._generated = GeneratedWeights(hypernetwork)
        self._runner = NetworkRunner(target, hypernetwork.layout, remaining)
        self.hypernetwork = hypernetwork
        self.target = self._runner.target
        self.networks = self._runner.networks

    def adaptation(self, experience: CLExperience) -> None:
        """Take in the experience's tasks; in training, its classes, too.

        Raises:
            ValueError: if the experience has no task labels, or the target has not enough output
                units left.
        """
        labels, has_new = labels_of(experience), self.multi_head and self.training
        new_units = self.units.without_units(tasks_and_classes(experience)) if has_new else []
        columns = [*(c for _, c in new_units), *(stated_classes(experience) or ())]
        if self.training and self.remaining == "frozen_after_first" and self.tasks.has_trained:
            self.target.requires_grad_(False)
        self._make_room(self.tasks.new(labels).values())  # first: the next call completes it
        self.tasks.add(labels)
        self.max_class_label = max([self.max_class_label, *(c + 1 for c in columns)])
        self.units.take(new_units)
        if self.training:
            self.tasks.train(labels)
            self.known_train_tasks_labels = {*self.trained_task_labels}

    def forward(
        self,
        x: Any,
        task_labels: Tensor | int | None,
        weights: Mapping[int, Tensor] | None = None,
    ) -> Any:
        """Outputs (B, …) for ``x`` (B, …) and task labels (B,), or one label for all.

        Without labels (None): outputs by task label, for all tasks that were trained on.

        Args:
            x: inputs; a tensor, or a mapping, tuple or dataclass of tensors (B, …).
            task_labels: see above.
            weights: what :meth:`generate` has generated already.

        Raises:
            ValueError: if a task label is unknown.
        """
        if task_labels is None:
            return self.forward_all_tasks(x)
        given = weights or {}
        if isinstance(task_labels, Tensor):
            labels = [int(label) for label in task_labels.unique()]
        else:
            labels = [index(task_labels)]
        if not labels:
            raise ValueError("x must have at least one sample, got none")
        if len(labels) == 1:
            (label,) = labels
            if label in given:
                return self._run(x, label, given[label])
            return self._run(x, label, self._generated.of_one(self.task_number(label)))
        given = {**given, **self.generate([t for t in labels if t not in given])}
        assert isinstance(task_labels, Tensor)
        chosen = [(task_labels == label).nonzero()[:, 0] for label in labels]
        outputs = [
            as_samples(
                self._run(structure_of(as_samples(x)[rows]), label, given[label]),
                "the target's output",
            )
            for rows, label in zip(chosen, labels, strict=True)
        ]
        return structure_of(joined(outputs)[torch.cat(chosen).argsort()])

    def forward_tasks(self, x: Any, task_labels: Sequence[int]) -> Tensor:
        """Outputs (T, B, …) for all of ``x`` (B, …) under each of T tasks, logits alone.

        In evaluation mode main networks run at once, by ``vmap``, in groups of at most so many
        weights, or inputs, that the memory stays bounded; what ``vmap`` cannot run (recurrent
        layers) runs one after the other.

        Raises:
            ValueError: if a task label is unknown, or there is none.
        """
        if not task_labels:
            raise ValueError("task_labels must name at least one task, got none")
        numbers = [self.task_number(label) for label in task_labels]
        size = self._runner.group_size(x)
        outputs = []
        for start in range(0, len(numbers), size):
            labels, group = task_labels[start : start + size], numbers[start : start + size]
            weights = self._generated.of(group)
            at_once = None if self.training else self._runner.run_at_once(x, group, weights)
            if at_once is None:
                pairs = zip(labels, weights, strict=True)
                outputs += [logits_of(self._run(x, label, w)) for label, w in pairs]
            else:
                pairs, n_columns = zip(labels, at_once, strict=True), self.max_class_label
                outputs += [self.units.select(output, t, n_columns) for t, output in pairs]
        return torch.stack(outputs)

    def generate(self, task_labels: Sequence[int]) -> dict[int, Tensor]:
        """The generated weights (W,) of tasks, by task label."""
        if not task_labels:
            return {}
        weights = self._generated.of([self.task_number(label) for label in task_labels])
        return dict(zip(task_labels, weights, strict=True))

    def main_network(self, task_label: int) -> nn.Module:
        """A copy of the main network with the weights of one task, which stands alone.

        Its outputs are those of the model for this task, in the same mode.
        """
        number = self.task_number(task_label)
        with evaluating(self.hypernetwork.modules()), torch.no_grad():
            weights = self.hypernetwork(number)[0]
        network = self._runner.standalone(number, weights)
        return self.units.standalone(network, task_label, self.max_class_label)

    def flatten_main_network(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The generated among tensors by parameter name of :meth:`main_network`, as one (W,)."""
        layout, prefix = self.hypernetwork.layout, self.units.network_prefix
        return layout.flatten({name: tensors[f"{prefix}{name}"] for name in layout.shapes})

    def of_hypernetwork(self, tensors: Mapping[str, T]) -> dict[str, T]:
        """Those of the hypernetwork, by its own names, of tensors by the model's names."""
        return {
            name.removeprefix(_HYPERNETWORK): tensor
            for name, tensor in tensors.items()
            if name.startswith(_HYPERNETWORK)
        }

    def weight_owners(self) -> Tensor | None:
        """For each generated weight (W,) the number of the task whose output unit it belongs to.

        ``SHARED`` for weights of other layers, ``UNUSED`` for units that no task has taken. None
        without ``multi_head``, and with ``reuse_units``, where all units serve all tasks.
        """
        return self.units.weight_owners(self.hypernetwork.layout, self.task_number)

    def task_parameters(self, label: int) -> dict[str, nn.Parameter]:
        """The parameters that belong to one task, by name."""
        number = self.task_number(label)
        of_hypernetwork = self.hypernetwork.task_parameters(number)
        of_network = self._runner.task_parameters(number)
        return {f"{_HYPERNETWORK}{n}": p for n, p in of_hypernetwork.items()} | {
            f"{_NETWORKS}{n}": p for n, p in of_network.items()
        }

    def reset_task(self, label: int) -> None:
        """Put all that belongs to one task back to its initial values, buffers included."""
        number = self.task_number(label)
        self.hypernetwork.reset_task(number)
        self._runner.reset_task(number)

    def get_extra_state(self) -> dict[str, Any]:
        """Task labels, which task and class has which unit, and what network it is."""
        return {
            **self.tasks.state_dict(),
            **self.units.state_dict(),
            "max_class_label": self.max_class_label,
            "network": _description(self),
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Become a model with the tasks of :meth:`get_extra_state`.

        Raises:
            ValueError: if it is of another network, saying what differs, or of other tasks.
        """
        check_extra_state(state, self.multi_head)
        self.units.require_same_reuse(state)
        require_same_network(state.get("network"), _description(self))
        self._make_room(self.tasks.load_state_dict(state))
        self.known_train_tasks_labels = {*self.trained_task_labels}
        self.units.load_state_dict(state)
        self.max_class_label = state["max_class_label"]

    def _make_room(self, numbers: Iterable[int]) -> None:
        """Give new tasks embeddings, and buffers and parameters of their own."""
        for number in numbers:
            if number == self.hypernetwork.n_tasks:
                self.hypernetwork.add_task()
            self._runner.add_task(number)

    def _run(self, x: Any, label: int, weights: Tensor) -> Any:
        self.tasks.has_trained |= self.training and torch.is_grad_enabled()
        outputs = self._runner.run(x, self.task_number(label), weights)
        return self.units.select(outputs, label, self.max_class_label)


def _description(model: HyperModel) -> dict[str, Any]:
    """Of the network and the options that a state must have in common with the model."""
    options = {name: getattr(model, name) for name in ("multi_head", "remaining", "mask_value")}
    return description(model.hypernetwork, model.target) | options | model.units.options()
