"""Networks that generate the weights of another network from an embedding of the task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from operator import index
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as normalise_spectrally

from avalanche_hnet.core.common.arguments import one_of
from avalanche_hnet.core.hypernetworks import hyperfan
from avalanche_hnet.core.hypernetworks.chunks import Chunks
from avalanche_hnet.core.hypernetworks.output_layer import Factors, OutputLayer
from avalanche_hnet.core.hypernetworks.sizes import Sizes
from avalanche_hnet.core.hypernetworks.trunk import hidden_units, make_trunk
from avalanche_hnet.core.hypernetworks.trunk_inputs import Embedded, TaskEmbeddings, TrunkInputs
from avalanche_hnet.core.hypernetworks.weight_layout import WeightLayout

HypernetInit = Literal["default", "hyperfan"]


class HyperNetwork(nn.Module):
    """An MLP from a task's embedding e to all weights of a main network, h(e, θ).

    von Oswald et al. 2020, *Continual learning with hypernetworks* (arXiv 1906.00695). The weights
    of any number of tasks are generated in one batched pass, as vectors of W weights of which
    :attr:`layout` has views by parameter name.

    Tasks are counted from 0 in the order in which :meth:`add_task` adds them. θ are all parameters
    but those of the tasks: :meth:`shared_parameters` and :meth:`task_parameters` tell them apart.

    Args:
        target: the main network, any module. It is only looked at: neither kept nor changed.
        embedding_dim: size E of a task's embedding.
        hidden: widths of the hidden layers; none makes the weights linear in the embedding.
        activation: makes the module after each hidden layer.
        generate: which of the target's parameters are generated: patterns as for
            :class:`WeightLayout`. All that require grad by default. Generating a part only is
            Hemati et al. 2023, *Partial hypernetworks for continual learning* (arXiv 2306.10724).
        dropout: probability with which hidden units are dropped in training mode.
        spectral_norm: normalise the hidden layers spectrally (Miyato et al. 2018). PyTorch does
            not pickle layers that are; save their ``state_dict``.
        init: ``"default"``, PyTorch's own, or ``"hyperfan"`` (Chang et al. 2020): generated
            weights start at the scale that the main network wants, see :mod:`.hyperfan`.
        embedding_std: standard deviation of new embeddings, which are drawn around zero. An
            embedding depends on PyTorch's global seed at construction and the task's number only.
        chunks: how the weights are cut into chunks, as :class:`ChunkedHyperNetwork` is told by
            single arguments; all weights are one chunk by default.

    Raises:
        TypeError, ValueError: if an argument is out of its range, or the target has nothing to
            generate.
    """

    def __init__(
        self,
        target: nn.Module,
        *,
        embedding_dim: int,
        hidden: Sequence[int] = (100, 100),
        activation: Callable[[], nn.Module] = nn.ReLU,
        generate: str | Sequence[str] = "*",
        dropout: float = 0.0,
        spectral_norm: bool = False,
        init: HypernetInit = "default",
        embedding_std: float = 1.0,
        chunks: Chunks | None = None,
    ) -> None:
        one_of(HypernetInit, init=init)
        tasks = TaskEmbeddings(embedding_dim, embedding_std)
        super().__init__()
        self.layout = WeightLayout(target, generate)
        self.embedding_dim = embedding_dim
        self.embedding_std = embedding_std
        self.chunk_size = self.layout.n_weights if chunks is None else chunks.size
        if self.chunk_size > self.layout.n_weights:
            raise ValueError(
                f"chunk_size must be at most the number of generated weights, "
                f"{self.layout.n_weights}, got {self.chunk_size}"
            )
        self.n_chunks = ceil(self.layout.n_weights / self.chunk_size)
        inputs = tasks if chunks is None else chunks.inputs(tasks, self.n_chunks)
        self._inputs: TrunkInputs = inputs
        self.trunk = make_trunk(inputs, hidden, activation, dropout)
        self.output = OutputLayer([inputs.width, *hidden][-1], self.chunk_size)
        for name in inputs.lists:
            self.register_module(name, nn.ParameterList())
        self.register_buffer("seed", torch.randint(1, 2**62, ()))
        self.register_buffer("offset", None)
        if init == "hyperfan":
            self.offset = hyperfan.initialise(
                target, self.layout, self.trunk, self.output, inputs.variance
            )
        if spectral_norm:
            for module in self.trunk:
                if isinstance(module, nn.Linear):
                    normalise_spectrally(module)
        like = next(p for n, p in target.named_parameters() if n in self.layout.shapes)
        self.to(device=like.device, dtype=like.dtype)
        for name, initial in inputs.shared().items():
            self.register_parameter(name, initial.draw(self.seed, self.output.weight))

    embeddings: nn.ParameterList
    seed: Tensor
    offset: Tensor | None

    @property
    def n_tasks(self) -> int:
        """T, the number of tasks so far."""
        return len(self.embeddings)

    @property
    def sizes(self) -> Sizes:
        """How many weights it generates and has."""
        trainable = sum(p.numel() for p in self.parameters())
        generated = self.layout.n_weights
        return Sizes(generated, trainable, trainable / generated)

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return f"{self.sizes}, {self.n_tasks} tasks"

    def add_task(self) -> int:
        """Add the embeddings of a new task and return its number."""
        task = self.n_tasks
        drawn = [of.draw(self.seed, self.output.weight) for of in self._inputs.of_task(task)]
        # Last the embeddings, which count the tasks; an interrupt may have left the others.
        for name, values in sorted(zip(self._inputs.lists, drawn, strict=True), key=_counts_tasks):
            if len(getattr(self, name)) == task:
                getattr(self, name).append(values)
        return task

    @torch.no_grad()
    def reset_task(self, task: int) -> None:
        """Put the parameters of one task back to their initial values."""
        for parameter, initial in zip(
            self.task_parameters(task).values(), self._inputs.of_task(task), strict=True
        ):
            parameter.copy_(initial.draw(self.seed, self.output.weight))

    def task_parameters(self, task: int) -> dict[str, nn.Parameter]:
        """The parameters that belong to one task, by name."""
        return {f"{name}.{task}": getattr(self, name)[task] for name in self._inputs.lists}

    def shared_parameters(self) -> dict[str, nn.Parameter]:
        """θ, the parameters that all tasks share, by name."""
        of_tasks = {n for task in range(self.n_tasks) for n in self.task_parameters(task)}
        return {n: p for n, p in self.named_parameters() if n not in of_tasks}

    def forward(self, tasks: int | Sequence[int] | Tensor) -> Tensor:
        """Weights (T, W) of T tasks, given by number.

        Raises:
            ValueError: if there is no such task.
        """
        return self.product(self.factors(tasks))

    def factors(
        self,
        tasks: int | Sequence[int] | Tensor,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> Factors:
        """What :meth:`product` makes weights of, for T tasks given by number.

        Args:
            tasks: T numbers of tasks.
            parameters: parameters and buffers, by name, to be used in place of its own.
        """
        return self.factors_of(self.embed(tasks, parameters), parameters)

    def embed(
        self,
        tasks: int | Sequence[int] | Tensor,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> Embedded:
        """The embeddings of T tasks given by number; arguments as for :meth:`factors`."""
        return self._inputs.embed(self, _numbers(tasks, self.n_tasks), parameters or {})

    def factors_of(
        self, embedded: Embedded, parameters: Mapping[str, Tensor] | None = None
    ) -> Factors:
        """:meth:`factors` of tasks that are given by their embeddings."""
        given = parameters or {}
        return Factors(
            hidden_units(self.trunk, self._inputs.feed(self, embedded, given), given),
            given.get("output.weight", self.output.weight),
            given.get("output.bias", self.output.bias),
        )

    def product(self, factors: Factors) -> Tensor:
        """Weights (T, W) from their factors."""
        weights = factors.product().flatten(1)[:, : self.layout.n_weights]
        return weights if self.offset is None else weights + self.offset

    def uncut(self, task: int) -> Tensor:
        """The weights of a task, of which the last chunk may reach beyond W.

        As :attr:`layout` does not look beyond, they serve as well, and their gradients take less
        copying.
        """
        factors = self.factors(task)
        if self.offset is not None:
            return self.product(factors).view(-1)
        return factors.product().view(-1)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        saved = sum(name.startswith(f"{prefix}embeddings.") for name in state_dict)
        while saved > self.n_tasks:
            self.add_task()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _counts_tasks(named: tuple[str, Any]) -> bool:
    return named[0] == "embeddings"


def _numbers(tasks: int | Sequence[int] | Tensor, n_tasks: int) -> list[int]:
    """Numbers of tasks as a list, once it is sure that there are such tasks."""
    if isinstance(tasks, Tensor):
        tasks = tasks.tolist()
    try:
        numbers = [index(tasks)]  # type: ignore[arg-type]
    except TypeError:
        numbers = [index(task) for task in tasks]  # type: ignore[union-attr]
    if not numbers:
        raise ValueError("tasks must name at least one task, got none")
    for task in (min(numbers), max(numbers)):
        if not 0 <= task < n_tasks:
            raise ValueError(f"there is no task {task}: the hypernetwork has {n_tasks}")
    return numbers
