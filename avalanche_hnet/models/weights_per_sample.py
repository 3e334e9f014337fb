"""A hyper model that generates weights for each sample, for the Fisher of the hypernetwork."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_hnet.core.common.samples import Samples, as_samples
from avalanche_hnet.core.fisher.kronecker_layer import KroneckerFisher
from avalanche_hnet.core.fisher.layer_rules import linear, register_fisher_rule
from avalanche_hnet.core.hypernetworks.network import HyperNetwork
from avalanche_hnet.core.hypernetworks.output_layer import OutputLayer
from avalanche_hnet.core.hypernetworks.pairs import Concatenate, LinearOfPairs
from avalanche_hnet.models.hyper_model import HyperModel

# At most so many weights are generated at a time (16 MiB of float32).
_BUDGET = 2**22


class WeightsPerSample(nn.Module):
    """The function of a :class:`HyperModel`, with weights that are generated anew for each sample.

    A task's weights are the same for all of its samples, so the layers of a hypernetwork are called
    once for all of them, and what a sample contributes to their gradients is lost. Here they are
    called with the samples in dimension 0 and the chunks as positions, as the rules of
    :func:`kronecker_factors` want it, and the main network runs with other weights for each sample.
    All parameters are the model's own. Embeddings of tasks are constant.

    For batches of at most :meth:`small` samples, since B · W weights are generated.

    Args:
        model: what it shares its parameters with; in evaluation mode only.
    """

    def __init__(self, model: HyperModel) -> None:
        super().__init__()
        hypernetwork = model.hypernetwork
        # By the names that they have in the hypernetwork.
        self.trunk = nn.Sequential(*(_of_vectors(module) for module in hypernetwork.trunk))
        self.output = _Generating(hypernetwork.output)
        shared = hypernetwork.shared_parameters().get("chunk_embeddings")
        self.chunks = None if shared is None else _SameForAll(shared)
        self.target, self.networks = model.target, model.networks
        self._names = {p: n for n, p in hypernetwork.shared_parameters().items()}
        self._n_weights, self._offset = hypernetwork.layout.n_weights, hypernetwork.offset
        self._inputs_of = partial(_inputs_of, hypernetwork)
        self._runner, self._units = model._runner, model.units
        self._task_number, self._n_columns = model.task_number, model.max_class_label
        self._runs_in_pairs: bool | None = None

    def forward(self, x: Any, task_labels: Tensor | int) -> Tensor:
        """Logits (B, …) for ``x`` (B, …), all of the one task of ``task_labels``."""
        samples = as_samples(x)
        label = int(task_labels[0]) if isinstance(task_labels, Tensor) else task_labels
        number = self._task_number(label)
        weights = self._weights(number, samples)
        if self._runs_in_pairs is None:
            keeps = self._runner.keeps_dimension(samples, number, weights[0].detach())
            self._runs_in_pairs = not keeps
        logits = self._runner.run_each(samples, number, weights, in_pairs=self._runs_in_pairs)
        selected: Tensor = self._units.select(logits, label, self._n_columns)
        return selected

    def small(self, batches: Callable[[], Iterable[tuple[Any, ...]]]) -> SmallBatches:
        """Batches in parts that fit into memory, made anew each time they are asked for."""
        return SmallBatches(batches, max(1, _BUDGET // self._n_weights))

    def of_hypernetwork(self, fisher: KroneckerFisher) -> KroneckerFisher:
        """The part of a Fisher of this model that is θ's, by the hypernetwork's own names."""
        own = {n: self._names[p] for n, p in self.named_parameters() if p in self._names}
        return KroneckerFisher(
            {n: f for n, f in fisher.layers.items() if own.keys() >= {*f.layout.names}},
            {own[n]: values for n, values in fisher.diagonal.items() if n in own},
        )

    def _weights(self, number: int, samples: Tensor | Samples) -> Tensor:
        """The weights (B, W) of a task, generated for each sample."""
        like = self.output.weight
        inputs = [
            vectors.to(like).expand(len(samples), *vectors.shape[1:])
            for vectors in self._inputs_of(number)
        ]
        if self.chunks is not None:
            inputs[0] = self.chunks(like.new_zeros(len(samples)))
        fed: Any = tuple(inputs)
        if len(inputs) == 1:
            (fed,) = inputs
        elif len(self.trunk) > 0 and type(self.trunk[0]) is nn.Linear:  # was one of pairs
            fed = Concatenate()(fed)
        weights: Tensor = self.output(self.trunk(fed)).flatten(1)[:, : self._n_weights]
        return weights if self._offset is None else weights + self._offset.to(weights)


@dataclass(frozen=True, eq=False)
class SmallBatches:
    """Batches in smaller parts, as often as they are asked for.

    Attributes:
        batches: makes tuples of inputs, targets and so on, samples in dimension 0.
        size: the largest number of samples of a part.
    """

    batches: Callable[[], Iterable[tuple[Any, ...]]]
    size: int

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for batch in self.batches():
            columns = [as_samples(column).split(self.size) for column in batch]
            yield from zip(*columns, strict=True)


class _Generating(nn.Module):
    """The output layer of a hypernetwork, with a Fisher rule.

    It is a type of its own since the layer itself is called with all chunks of several tasks.
    """

    def __init__(self, layer: OutputLayer) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, z: Tensor) -> Tensor:
        """Chunks (B, K, C) from hidden units (B, K, r)."""
        return F.linear(z, self.weight.T, self.bias)


@register_fisher_rule(_Generating)
def _generating(layer: nn.Module, inputs: Tensor, grads: Tensor) -> dict[str, Tensor]:
    if inputs.shape[1] == 1:  # one chunk, with products of squares
        inputs, grads = inputs[:, 0], grads[:, 0]
    squares = linear(layer, inputs, grads)
    return {"weight": squares["weight"].T, "bias": squares["bias"]}


class _SameForAll(nn.Module):
    """A parameter that is used once by each sample."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, samples: Tensor) -> Tensor:
        """The parameter (B, …) for B samples, whatever these are."""
        return self.weight.expand(len(samples), *self.weight.shape)


@register_fisher_rule(_SameForAll)
def _same_for_all(layer: nn.Module, inputs: Tensor, grads: Tensor) -> dict[str, Tensor]:
    return {"weight": grads.square().sum(0)}


def _of_vectors(module: nn.Module) -> nn.Module:
    """A linear layer of pairs as one of vectors, with the same parameters; others as they are."""
    if type(module) is not LinearOfPairs:
        return module
    layer = nn.Linear(module.in_features, module.out_features, device="meta")
    layer.weight, layer.bias = module.weight, module.bias
    return layer


@torch.no_grad()
def _inputs_of(hypernetwork: HyperNetwork, number: int) -> list[Tensor]:
    """What feeds the trunk for a task: one set of vectors (1, K, …), or two to be paired."""
    fed = hypernetwork._inputs.feed(hypernetwork, hypernetwork.embed(number), {})
    return [fed] if isinstance(fed, Tensor) else [*fed]
