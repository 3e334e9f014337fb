"""Networks that generate the weights of another network from an embedding of the task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from math import ceil
from operator import index
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm as normalise_spectrally

from avalanche_hnet.core.common.arguments import at_least, not_negative, one_of
from avalanche_hnet.core.hypernetworks import hyperfan
from avalanche_hnet.core.hypernetworks.pairs import Concatenate, LinearOfPairs, linear
from avalanche_hnet.core.hypernetworks.weight_layout import WeightLayout

HypernetInit = Literal["default", "hyperfan"]


class Factors(NamedTuple):
    """The generated weights before the output layer's product: W_tk = hidden_tk @ weight + bias.

    Attributes:
        hidden: last hidden units (T, K, r), for T tasks and K chunks.
        weight: of the output layer (r, C), C the chunk size.
        bias: of the output layer (C,).
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor


class Embedded(NamedTuple):
    """Tasks, given by their embeddings.

    Attributes:
        tasks: embeddings of T tasks (T, 1, E).
        chunks: their chunk embeddings (T, K, …), if these are task-specific.
    """

    tasks: Tensor
    chunks: Tensor | None


class Sizes(NamedTuple):
    """What a hypernetwork generates and what it costs.

    Attributes:
        generated: number of weights that it generates for each task.
        trainable: number of its own weights, embeddings of all tasks so far included.
        compression: trainable / generated; below 1 it is smaller than one main network.
    """

    generated: int
    trainable: int
    compression: float

    def __str__(self) -> str:
        return (
            f"{self.generated:,} generated weights, {self.trainable:,} trainable weights, "
            f"compression ratio {self.compression:.3f} (trainable / generated)"
        )


class OutputLayer(nn.Module):
    """z @ weight + bias: a linear layer with the transposed weight.

    It has few inputs and very many outputs. Products with few long rows are several times faster
    than with many short ones.

    Args:
        in_features: r.
        out_features: C.

    Attributes:
        weight: (r, C).
        bias: (C,).
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        drawn = nn.Linear(in_features, out_features)
        self.weight = nn.Parameter(drawn.weight.detach().T.contiguous())
        self.bias = drawn.bias

    def forward(self, z: Tensor) -> Tensor:
        """Outputs (…, C) for ``z`` (…, r)."""
        return F.linear(z, self.weight.T, self.bias)

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


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
    ) -> None:
        if not isinstance(hidden, Sequence):
            raise TypeError(f"hidden must be a sequence of widths, such as (9, 9), got {hidden!r}")
        _require_factory(activation)
        at_least(
            1, embedding_dim=embedding_dim, **{f"hidden[{i}]": n for i, n in enumerate(hidden)}
        )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be a probability below 1, got {dropout}")
        not_negative(embedding_std=embedding_std)
        one_of(HypernetInit, init=init)
        super().__init__()
        self.layout = WeightLayout(target, generate)
        self.embedding_dim = embedding_dim
        self.embedding_std = embedding_std
        self.chunk_size = self._chunk_size or self.layout.n_weights
        if self.chunk_size > self.layout.n_weights:
            raise ValueError(
                f"chunk_size must be at most the number of generated weights, "
                f"{self.layout.n_weights}, got {self.chunk_size}"
            )
        self.n_chunks = ceil(self.layout.n_weights / self.chunk_size)
        like = next(p for n, p in target.named_parameters() if n in self.layout.shapes)

        widths = [self._chunk_embedding_dim + embedding_dim, *hidden]
        self.trunk = nn.Sequential(*self._first_module(*widths[:2]))
        for position, width in enumerate(hidden):
            if position:
                self.trunk.append(nn.Linear(hidden[position - 1], width))
            self.trunk.append(activation())
            if dropout:
                self.trunk.append(nn.Dropout(dropout))
        self.output = OutputLayer(widths[-1], self.chunk_size)
        self.embeddings = nn.ParameterList()
        self.register_buffer("seed", torch.randint(1, 2**62, ()))
        self.register_buffer("offset", None)
        if init == "hyperfan":
            self._initialise_by_hyperfan(target)
        if spectral_norm:
            for module in self.trunk:
                if isinstance(module, nn.Linear):
                    normalise_spectrally(module)
        self.to(device=like.device, dtype=like.dtype)

    seed: Tensor
    offset: Tensor | None

    # What ChunkedHyperNetwork changes; without chunks, all weights are one chunk.
    _chunk_size: int | None = None
    _chunk_embedding_dim: int = 0

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
        """Add the embedding of a new task and return its number."""
        embedding, *_ = self._draw_task(self.n_tasks)
        self.embeddings.append(embedding)
        return self.n_tasks - 1

    @torch.no_grad()
    def reset_task(self, task: int) -> None:
        """Put the parameters of one task back to their initial values."""
        for parameter, initial in zip(
            self.task_parameters(task).values(), self._draw_task(task), strict=True
        ):
            parameter.copy_(initial)

    def task_parameters(self, task: int) -> dict[str, nn.Parameter]:
        """The parameters that belong to one task, by name."""
        return {f"embeddings.{task}": self.embeddings[task]}

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
        numbers = self._numbers(tasks)
        return Embedded(self._stack("embeddings", numbers, parameters or {})[:, None], None)

    def factors_of(
        self, embedded: Embedded, parameters: Mapping[str, Tensor] | None = None
    ) -> Factors:
        """:meth:`factors` of tasks that are given by their embeddings."""
        given = parameters or {}
        return Factors(
            self._hidden(self._trunk_inputs(embedded, given), given),
            given.get("output.weight", self.output.weight),
            given.get("output.bias", self.output.bias),
        )

    def product(self, factors: Factors) -> Tensor:
        """Weights (T, W) from their factors."""
        weights = self._chunks(factors).flatten(1)[:, : self.layout.n_weights]
        return weights if self.offset is None else weights + self.offset

    def uncut(self, task: int) -> Tensor:
        """The weights of a task, of which the last chunk may reach beyond W.

        As :attr:`layout` does not look beyond, they serve as well, and their gradients take less
        copying.
        """
        factors = self.factors(task)
        if self.offset is not None:
            return self.product(factors).view(-1)
        return self._chunks(factors).view(-1)

    def _chunks(self, factors: Factors) -> Tensor:
        """Generated weights by chunk (T, K, C)."""
        return F.linear(factors.hidden, factors.weight.T, factors.bias)

    def _first_module(self, n_inputs: int, n_outputs: int | None = None) -> list[nn.Module]:
        """What takes the inputs in: the first hidden layer, if there is one."""
        return [] if n_outputs is None else [nn.Linear(n_inputs, n_outputs)]

    def _trunk_inputs(self, embedded: Embedded, given: Mapping[str, Tensor]) -> Any:
        """Inputs of the trunk (T, K, …)."""
        return embedded.tasks

    def _hidden(self, inputs: Any, given: Mapping[str, Tensor]) -> Tensor:
        """Outputs of the trunk (T, K, r).

        Like ``functional_call`` on it, at a fraction of the overhead for plain linear layers.
        """
        if not given:
            return self.trunk(inputs)
        for position, module in enumerate(self.trunk):
            prefix = f"trunk.{position}."
            if isinstance(module, nn.Linear) and type(module) in (nn.Linear, LinearOfPairs):
                weight = given.get(f"{prefix}weight", module.weight)
                inputs = linear(inputs, weight, given.get(f"{prefix}bias", module.bias))
                continue
            own = {n.removeprefix(prefix): t for n, t in given.items() if n.startswith(prefix)}
            inputs = functional_call(module, own, (inputs,)) if own else module(inputs)
        hidden: Tensor = inputs
        return hidden

    def _stack(self, of: str, tasks: list[int], given: Mapping[str, Tensor]) -> Tensor:
        own: dict[str, Tensor] = getattr(self, of)._parameters
        return torch.stack([given.get(f"{of}.{task}", own[str(task)]) for task in tasks])

    def _numbers(self, tasks: int | Sequence[int] | Tensor) -> list[int]:
        if isinstance(tasks, Tensor):
            tasks = tasks.tolist()
        try:
            numbers = [index(tasks)]  # type: ignore[arg-type]
        except TypeError:
            numbers = [index(task) for task in tasks]  # type: ignore[union-attr]
        if not numbers:
            raise ValueError("tasks must name at least one task, got none")
        for task in (min(numbers), max(numbers)):
            if not 0 <= task < self.n_tasks:
                raise ValueError(f"there is no task {task}: the hypernetwork has {self.n_tasks}")
        return numbers

    def _draw_task(self, task: int) -> list[nn.Parameter]:
        """Initial values of :meth:`task_parameters`."""
        return [self._draw((self.embedding_dim,), self.embedding_std, key=2 * task)]

    def _draw(self, shape: tuple[int, ...], std: float, key: int) -> nn.Parameter:
        """Normal values that depend on the seed and ``key`` alone, whenever they are drawn."""
        generator = torch.Generator().manual_seed(int(self.seed) + key)
        weight = self.output.weight
        values = std * torch.randn(shape, generator=generator, dtype=weight.dtype)
        return nn.Parameter(values.to(weight.device))

    def _initialise_by_hyperfan(self, target: nn.Module) -> None:
        if not self._input_variance():
            raise ValueError("init='hyperfan' needs an embedding_std that is positive, got 0")
        mean, variance = hyperfan.wanted_statistics(
            target, self.layout, by_weight=self.n_chunks == 1
        )
        if mean.any():
            self.offset = mean
        padding = self.n_chunks * self.chunk_size - len(variance)
        # A unit of the output layer generates one weight in each chunk: it suits most of them.
        by_chunk = F.pad(variance, (0, padding), value=float("nan")).view(self.n_chunks, -1)
        suitable = by_chunk.nanmedian(0).values.nan_to_num()
        weight, bias = self.output.weight, self.output.bias
        hyperfan.initialise(self.trunk, weight, bias, self._input_variance(), suitable)

    def _input_variance(self) -> float:
        return self.embedding_std**2

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        saved = sum(name.startswith(f"{prefix}embeddings.") for name in state_dict)
        while saved > self.n_tasks:
            self.add_task()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class ChunkedHyperNetwork(HyperNetwork):
    """A hypernetwork that generates the weights in chunks, each from its own chunk embedding.

    The vector of W weights is cut into K = ⌈W / C⌉ chunks of C weights, of which the last may be
    cut short. One MLP generates every chunk from the chunk's embedding and the task's, so it is
    smaller than the network whose weights it generates (von Oswald et al. 2020, section 2.3).

    Args:
        target: the main network, see :class:`HyperNetwork`.
        chunk_size: C, at most W.
        chunk_embedding_dim: size of a chunk's embedding.
        task_specific_chunk_embeddings: give each task chunk embeddings of its own, which then are
            learned with the task's embedding and constant afterwards.
        chunk_embedding_std: standard deviation of new chunk embeddings.
        **options: the other arguments of :class:`HyperNetwork`.

    Raises:
        TypeError, ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        target: nn.Module,
        *,
        chunk_size: int,
        chunk_embedding_dim: int,
        task_specific_chunk_embeddings: bool = False,
        chunk_embedding_std: float = 1.0,
        **options: Any,
    ) -> None:
        at_least(1, chunk_size=chunk_size, chunk_embedding_dim=chunk_embedding_dim)
        not_negative(chunk_embedding_std=chunk_embedding_std)
        self._chunk_size = chunk_size
        self._chunk_embedding_dim = chunk_embedding_dim
        self.chunk_embedding_std = chunk_embedding_std
        self.task_specific_chunk_embeddings = task_specific_chunk_embeddings
        super().__init__(target, **options)
        if task_specific_chunk_embeddings:
            self.task_chunk_embeddings = nn.ParameterList()
        else:
            self.chunk_embeddings = self._draw(
                (self.n_chunks, chunk_embedding_dim), chunk_embedding_std, key=-1
            )

    def add_task(self) -> int:
        """Add the embedding (and chunk embeddings) of a new task and return its number."""
        if self.task_specific_chunk_embeddings:
            self.task_chunk_embeddings.append(self._draw_task(self.n_tasks)[1])
        return super().add_task()

    def _draw_task(self, task: int) -> list[nn.Parameter]:
        drawn = super()._draw_task(task)
        if self.task_specific_chunk_embeddings:
            shape = (self.n_chunks, self._chunk_embedding_dim)
            drawn.append(self._draw(shape, self.chunk_embedding_std, key=2 * task + 1))
        return drawn

    def task_parameters(self, task: int) -> dict[str, nn.Parameter]:
        """The parameters that belong to one task, by name."""
        own = super().task_parameters(task)
        if self.task_specific_chunk_embeddings:
            own[f"task_chunk_embeddings.{task}"] = self.task_chunk_embeddings[task]
        return own

    def _first_module(self, n_inputs: int, n_outputs: int | None = None) -> list[nn.Module]:
        return [Concatenate()] if n_outputs is None else [LinearOfPairs(n_inputs, n_outputs)]

    def embed(
        self,
        tasks: int | Sequence[int] | Tensor,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> Embedded:
        """The embeddings of T tasks given by number; arguments as for :meth:`factors`."""
        embedded = super().embed(tasks, parameters)
        if not self.task_specific_chunk_embeddings:
            return embedded
        numbers = self._numbers(tasks)
        chunks = self._stack("task_chunk_embeddings", numbers, parameters or {})
        return embedded._replace(chunks=chunks)

    def _trunk_inputs(
        self, embedded: Embedded, given: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        chunks = embedded.chunks
        if chunks is None:
            chunks = given.get("chunk_embeddings", self.chunk_embeddings)[None]
        return chunks, embedded.tasks

    def _input_variance(self) -> float:
        n_chunk, n_task = self._chunk_embedding_dim, self.embedding_dim
        return (n_chunk * self.chunk_embedding_std**2 + n_task * self.embedding_std**2) / (
            n_chunk + n_task
        )


def _require_factory(activation: object) -> None:
    module = None
    if callable(activation) and not isinstance(activation, nn.Module):
        with suppress(TypeError):
            module = activation()
    if not isinstance(module, nn.Module):
        raise TypeError(
            "activation must make a module when it is called without arguments, such as "
            f"torch.nn.ReLU, got {activation!r}, which makes {module!r}"
        )
