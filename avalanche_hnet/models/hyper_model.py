"""A main network whose weights a hypernetwork generates, as a model for Avalanche."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from operator import attrgetter, index
from typing import Any, Literal, TypeVar

import torch
from avalanche.benchmarks import CLExperience
from avalanche.models import MultiTaskModule
from torch import Tensor, nn
from torch.func import functional_call, vmap

from avalanche_hnet.core.common.arguments import one_of
from avalanche_hnet.core.common.evaluation import evaluating
from avalanche_hnet.core.common.masking import MASK_VALUE
from avalanche_hnet.core.hypernetworks.network import HyperNetwork
from avalanche_hnet.core.hypernetworks.weight_cache import WeightCache
from avalanche_hnet.core.regularizers.deviation import SHARED, UNUSED
from avalanche_hnet.data.experiences import labels_of, tasks_and_classes
from avalanche_hnet.models.main_network import (
    aliases_of,
    find_output_layer,
    release_weights,
    renew_weights,
    require_fit,
    strip,
)
from avalanche_hnet.models.output_units import OutputUnits
from avalanche_hnet.models.select_units import SelectUnits, select_units

# Main networks run at once have together at most so many weights, or inputs (64 MiB of float32).
_GROUP_BUDGET = 2**24

T = TypeVar("T", bound=Tensor)
Remaining = Literal["shared", "per_task", "frozen", "frozen_after_first"]


class HyperModel(MultiTaskModule):
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

    max_class_label: int
    known_train_tasks_labels: set[int]

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
        if output_layer is not None and not multi_head:
            raise ValueError(f"output_layer={output_layer!r} needs multi_head=True")
        if reuse_units and not multi_head:
            raise ValueError("reuse_units=True needs multi_head=True")
        super().__init__()
        self.remaining: Remaining = remaining
        self.multi_head = multi_head
        self.mask_value = mask_value
        self.hypernetwork = hypernetwork
        if multi_head:
            layer = find_output_layer(target, output_layer)
            n_units = len(attrgetter(f"{layer}.weight".lstrip("."))(target))
            self.units = OutputUnits(layer, n_units, reuse=reuse_units)
        self._aliases = aliases_of(target)
        if reuse_units:
            shared = self._head_parameters() - self.generated_heads
            if shared:
                raise ValueError(
                    "reuse_units=True needs the output layer to be generated, but "
                    f"{min(shared)!r} is not, and tasks would share it"
                )
        self.target = copy.deepcopy(target)
        strip(self.target, hypernetwork.layout.shapes)
        not_generated = dict(self.target.named_parameters())
        trained_per_task = {n for n, p in not_generated.items() if p.requires_grad}
        self._trained_per_task = trained_per_task if remaining == "per_task" else set()
        self._shared = [n for n in not_generated if n not in self._trained_per_task]
        if remaining in ("per_task", "frozen"):
            self.target.requires_grad_(False)
        self._recurrent = [
            n for n, module in target.named_modules() if isinstance(module, nn.RNNBase)
        ]
        self._has_state = bool(self._trained_per_task) or any(True for _ in target.buffers())
        self.networks = nn.ModuleDict()  # buffers and parameters of each task, by task number
        self._tasks: dict[int, int] = {}  # task number by label
        self._trained: set[int] = set()  # labels
        self._has_trained = False
        self._cache = WeightCache()

    @property
    def task_labels(self) -> tuple[int, ...]:
        """Labels of the tasks, in the order of their numbers in the hypernetwork."""
        return tuple(self._tasks)

    @property
    def trained_task_labels(self) -> tuple[int, ...]:
        """Labels of the tasks that have been, or are being, trained on."""
        return tuple(label for label in self._tasks if label in self._trained)

    def task_number(self, label: int) -> int:
        """The number that the task with this label has in the hypernetwork.

        Raises:
            ValueError: if it is not known.
        """
        if label not in self._tasks:
            raise ValueError(
                f"task label {label} is unknown; the model was adapted to experiences with the "
                f"labels {list(self._tasks)}"
            )
        return self._tasks[label]

    def task_parameters(self, label: int) -> dict[str, nn.Parameter]:
        """The parameters that belong to one task, by name."""
        number = self.task_number(label)
        own = {f"hypernetwork.{n}": p for n, p in self.hypernetwork.task_parameters(number).items()}
        if str(number) in self.networks:
            network = self.networks[str(number)]
            own |= {f"networks.{number}.{n}": p for n, p in network.named_parameters()}
        return own

    def of_hypernetwork(self, tensors: Mapping[str, T]) -> dict[str, T]:
        """Of tensors by the model's parameter names, the hypernetwork's, by its own names."""
        prefix = "hypernetwork."
        return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

    def reset_task(self, label: int) -> None:
        """Put all that belongs to one task back to its initial values, buffers included."""
        number = self.task_number(label)
        self.hypernetwork.reset_task(number)
        if self._has_state:
            initial = self.target.state_dict()
            network = self.networks[str(number)]
            network.load_state_dict({name: initial[name] for name in network.state_dict()})

    def adaptation(self, experience: CLExperience) -> None:
        """Take in the experience's tasks; in training, its classes, too.

        Raises:
            ValueError: if the experience has no task labels, or the target has not enough output
                units left.
        """
        labels = labels_of(experience)
        if self.multi_head and self.training:
            new = self.units.take(tasks_and_classes(experience))
            self.max_class_label = max([self.max_class_label, *(c + 1 for _, c in new)])
        classes = getattr(experience, "classes_in_this_experience", None)
        if classes:
            self.max_class_label = max(self.max_class_label, int(max(classes)) + 1)
        if self.training and self.remaining == "frozen_after_first" and self._has_trained:
            self.target.requires_grad_(False)
        for label in labels:
            self._add_task(label)
        if self.training:
            self._trained.update(labels)
            self.known_train_tasks_labels = self.known_train_tasks_labels | {*labels}

    def forward(
        self,
        x: Tensor,
        task_labels: Tensor | int | None,
        weights: Mapping[int, Tensor] | None = None,
    ) -> Any:
        """Outputs (B, …) for ``x`` (B, …) and task labels (B,), or one label for all.

        Without labels (None): outputs by task label, for all tasks that were trained on.

        Args:
            x: inputs.
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
            return self._run(x, label, given[label] if label in given else self._one(label))
        given = {**given, **self.generate([t for t in labels if t not in given])}
        assert isinstance(task_labels, Tensor)
        chosen = [(task_labels == label).nonzero()[:, 0] for label in labels]
        outputs = [
            self._run(x[rows], label, given[label])
            for rows, label in zip(chosen, labels, strict=True)
        ]
        return torch.cat(outputs)[torch.cat(chosen).argsort()]

    def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
        """Outputs (B, …) for ``x`` (B, …), all of one task."""
        return self._run(x, task_label, self._one(task_label))

    def generate(self, task_labels: Sequence[int]) -> dict[int, Tensor]:
        """The generated weights (W,) of tasks, by task label."""
        if not task_labels:
            return {}
        return dict(zip(task_labels, self._weights(task_labels), strict=True))

    def forward_all_tasks(self, x: Tensor) -> dict[int, Tensor]:
        """Outputs (B, …) for ``x`` by task label, for all tasks that were trained on."""
        labels = self.trained_task_labels
        return dict(zip(labels, self.forward_tasks(x, labels), strict=True))

    def forward_tasks(self, x: Tensor, task_labels: Sequence[int]) -> Tensor:
        """Outputs (T, B, …) for all of ``x`` (B, …) under each of T tasks.

        In evaluation mode main networks run at once, by ``vmap``, in groups of at most so many
        weights, or inputs, that the memory stays bounded; what ``vmap`` cannot run (recurrent
        layers) runs one after the other.

        Raises:
            ValueError: if a task label is unknown, or there is none.
        """
        if not task_labels:
            raise ValueError("task_labels must name at least one task, got none")
        numbers = [self.task_number(label) for label in task_labels]
        size = max(1, _GROUP_BUDGET // max(self.hypernetwork.layout.n_weights, x.numel()))
        outputs = []
        for start in range(0, len(numbers), size):
            labels = task_labels[start : start + size]
            weights = self._weights(labels)
            found = self._run_at_once(x, numbers[start : start + size], weights)
            for label, weight, output in zip(labels, weights, found, strict=True):
                outputs.append(
                    self._run(x, label, weight) if output is None else self._own(output, label)
                )
        return torch.stack(outputs)

    def main_network(self, task_label: int) -> nn.Module:
        """A copy of the main network with the weights of one task, which stands alone.

        Its outputs are those of the model for this task, in the same mode.
        """
        number = self.task_number(task_label)
        network = copy.deepcopy(self._network(number))
        with evaluating(self.hypernetwork.modules()), torch.no_grad():
            generated = self.hypernetwork.layout.views(self.hypernetwork(number)[0])
        own = {n: nn.Parameter(p.clone()) for n, p in generated.items()}
        for name, parameter in self._shared_parameters().items():
            own[name] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
        for alias, name in self._aliases.items():
            if name in own:
                prefix, _, last = alias.rpartition(".")
                setattr(network.get_submodule(prefix), last, own[name])
        if not self.multi_head:
            return network
        return nn.Sequential(network, SelectUnits(*self._columns_of(task_label)))

    def weight_owners(self) -> Tensor | None:
        """For each generated weight (W,) the number of the task whose output unit it belongs to.

        ``SHARED`` for weights of other layers, ``UNUSED`` for units that no task has taken. None
        without ``multi_head``, and with ``reuse_units``, where all units serve all tasks.
        """
        if not self.multi_head or self.units.reuse:
            return None
        of_units = torch.full((self.units.number,), UNUSED)
        for unit, (label, _) in enumerate(self.units.taken):
            of_units[unit] = self._tasks[label]
        owners, of_layer = {}, self.generated_heads
        for name, shape in self.hypernetwork.layout.shapes.items():
            owners[name] = torch.full(shape, SHARED)
            if name in of_layer and shape[:1] == (self.units.number,):
                owners[name] = of_units.view(-1, *[1] * (len(shape) - 1)).expand(shape)
        return self.hypernetwork.layout.flatten(owners)

    @property
    def generated_heads(self) -> set[str]:
        """Names of the generated parameters of the shared output layer; none if there is none."""
        return self._head_parameters() & self.hypernetwork.layout.shapes.keys()

    def active_elements(self, experience: CLExperience) -> dict[str, Tensor]:
        """All elements but those of other tasks, for :class:`PriorEWCPlugin`."""
        labels = labels_of(experience)
        return {
            name: torch.tensor(False)
            for label in self._tasks
            if label not in labels
            for name in self.task_parameters(label)
        }

    def get_extra_state(self) -> dict[str, Any]:
        """Task labels, and which task and class has which unit."""
        return {
            "tasks": list(self._tasks),
            "trained": sorted(self._trained),
            "reuse_units": self.multi_head and self.units.reuse,
            "units": [list(pair) for pair in self.units.taken] if self.multi_head else [],
            "max_class_label": self.max_class_label,
            "has_trained": self._has_trained,
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Become a model with the tasks of :meth:`get_extra_state`.

        Raises:
            ValueError: if the model has other tasks, or the same in another order, or hands out
                output units in another way.
        """
        reuses = self.multi_head and self.units.reuse
        if state.get("reuse_units", False) != reuses:
            raise ValueError(
                f"the state is that of a model with reuse_units={not reuses}, but this one has "
                f"reuse_units={reuses}"
            )
        own = list(self._tasks)
        if own != state["tasks"][: len(own)]:
            raise ValueError(
                f"the state has the tasks {state['tasks']} in this order, but the model {own}; "
                "load it into a model without tasks"
            )
        for label in state["tasks"]:
            self._add_task(label)
        self._trained = set(state["trained"])
        self.known_train_tasks_labels = set(state["trained"])
        self._has_trained = state["has_trained"]
        if self.multi_head:
            self.units.taken = [(label, class_) for label, class_ in state["units"]]
        self.max_class_label = state["max_class_label"]

    def _add_task(self, label: int) -> None:
        if label in self._tasks:
            return
        number = len(self._tasks)
        if number == self.hypernetwork.n_tasks:
            self.hypernetwork.add_task()
        if self._has_state:
            network = copy.deepcopy(self.target)
            strip(network, {n for n, _ in self.target.named_parameters()} - self._trained_per_task)
            network.requires_grad_(True)
            self.networks[str(number)] = network
        self._tasks[label] = number

    def _network(self, number: int) -> nn.Module:
        return self.networks[str(number)] if self._has_state else self.target

    def _shared_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters of the target that are not generated and that all tasks share."""
        return {name: attrgetter(name)(self.target) for name in self._shared}

    def _weights(self, labels: Sequence[int]) -> Tensor:
        """Generated weights (T, W)."""
        numbers = [self.task_number(label) for label in labels]
        if self._may_be_kept:
            return self._cache.get(self.hypernetwork, numbers)
        weights: Tensor = self.hypernetwork(numbers)
        return weights

    def _one(self, label: int) -> Tensor:
        """Generated weights of a task, of which the layout may ignore a rest."""
        if self._may_be_kept:
            return self._weights([label])[0]
        return self.hypernetwork.uncut(self.task_number(label))

    @property
    def _may_be_kept(self) -> bool:
        hypernetwork = self.hypernetwork
        return not (
            torch.is_grad_enabled()
            or any(module.training for module in hypernetwork.modules())
            or torch.is_autocast_enabled(hypernetwork.output.weight.device.type)
        )

    def _run(self, x: Tensor, label: int, flat: Tensor) -> Tensor:
        network = self._network(self._tasks[label])
        parameters = self._shared_parameters() | self.hypernetwork.layout.views(flat)
        arguments = {
            alias: parameters[name] for alias, name in self._aliases.items() if name in parameters
        }
        renew_weights(network, self._recurrent)
        self._has_trained |= self.training and torch.is_grad_enabled()
        outputs: Tensor = functional_call(network, arguments, (x,), tie_weights=False)
        release_weights(network, self._recurrent)
        return self._own(outputs, label)

    def _run_at_once(self, x: Tensor, numbers: Sequence[int], flat: Tensor) -> Tensor | list[None]:
        """Outputs of the main networks (T, B, …), or None for each where ``vmap`` fails."""
        if len(numbers) == 1 or self._recurrent or self.training:
            return [None] * len(numbers)
        views = self.hypernetwork.layout.views(flat)
        generated = {a: views[n] for a, n in self._aliases.items() if n in views}
        shared = self._shared_parameters()
        fixed = {a: shared[n] for a, n in self._aliases.items() if n in shared}
        if self._has_state:
            states = [_state(self.networks[str(number)]) for number in numbers]
            generated |= {n: torch.stack([s[n] for s in states]) for n in states[0]}

        def run(own: dict[str, Tensor]) -> Tensor:
            return functional_call(self.target, fixed | own, (x,), tie_weights=False)

        try:
            return vmap(run)(generated)
        except RuntimeError:  # what does not run one by one either says so there
            return [None] * len(numbers)

    def _own(self, outputs: Tensor, label: int) -> Tensor:
        """The outputs that belong to the task, of outputs (B, …) of the main network."""
        if not self.multi_head:
            return outputs
        if outputs.shape[1] != self.units.number:
            raise ValueError(
                f"the target has {outputs.shape[1]} outputs, but its layer {self.units.layer!r} "
                f"has {self.units.number} units; name the output layer with output_layer"
            )
        return select_units(outputs, *self._columns_of(label))

    def _columns_of(self, label: int) -> tuple[list[int], list[int], int, float]:
        """Units and classes of a task, the number of columns, and what the others hold."""
        return *self.units.of(label), self.max_class_label, self.mask_value

    def _head_parameters(self) -> set[str]:
        """Names of the parameters of the shared output layer; none if there is none."""
        if not self.multi_head:
            return set()
        prefix = f"{self.units.layer}." if self.units.layer else ""
        return {name for alias, name in self._aliases.items() if alias.startswith(prefix)}


def _state(network: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, by each of their names."""
    parameters = dict(network.named_parameters(remove_duplicate=False))
    return parameters | dict(network.named_buffers(remove_duplicate=False))
