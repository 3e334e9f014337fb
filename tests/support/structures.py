"""Inputs and outputs in structures, and networks and streams for them."""

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import torch
from avalanche.benchmarks import benchmark_from_datasets, tensors_benchmark, with_task_labels
from avalanche.benchmarks.scenarios.supervised import with_classes_timeline
from avalanche.benchmarks.utils import (
    AvalancheDataset,
    ConstantSequence,
    DataAttribute,
    TaskLabels,
)
from avalanche.models import MultiTaskModule
from avalanche.training import Naive
from torch import Tensor, nn
from torch.utils.data import default_collate


class Encoding(UserDict):
    """What the tokenizers of Hugging Face return."""

    def to(self, device, non_blocking=False):
        self.data = {k: v.to(device, non_blocking=non_blocking) for k, v in self.data.items()}
        return self


@dataclass(frozen=True)
class Pair:
    left: Tensor
    right: Tensor


@dataclass
class Output:
    """What the models of Hugging Face return, in short."""

    loss: Any = None
    logits: Any = None
    hidden: Any = None


Halves = namedtuple("Halves", ["left", "right"])
Named = namedtuple("Named", ["hidden", "logits"])

# From the two halves of the features to a structure.
INPUTS = {
    "dict": lambda a, b: {"a": a, "b": b},
    "ordered dict": lambda a, b: OrderedDict(a=a, b=b),
    "encoding": lambda a, b: Encoding(a=a, b=b),
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, b],
    "named tuple": Halves,
    "dataclass": Pair,
    "nested": lambda a, b: {"a": (a,), "b": [{"c": b}], "name": "nested"},
}

OUTPUTS = {
    "tensor": lambda logits: logits,
    "dict": lambda logits: {"loss": None, "hidden": logits.tanh(), "logits": logits},
    "encoding": lambda logits: Encoding(logits=logits),
    "dataclass": lambda logits: Output(logits=logits, hidden=logits.tanh()),
    "named tuple": lambda logits: Named(logits.tanh(), logits),
    "tuple": lambda logits: (logits, logits.tanh()),
    "list after None": lambda logits: [None, logits],
}


def halves(x):
    return x.split(x.shape[1] // 2, 1)


class Structured(nn.Module):
    """A network for tensors, with a structure on both sides."""

    def __init__(self, net, wrap=OUTPUTS["dict"]):
        super().__init__()
        self.net, self.wrap = net, wrap

    def forward(self, x):
        return self.wrap(self.net(joined_features(x)))


class StructuredMultiTask(MultiTaskModule):
    def __init__(self, net, wrap=OUTPUTS["dict"]):
        super().__init__()
        self.net, self.wrap = net, wrap

    def forward(self, x, task_labels):
        return self.wrap(self.net(joined_features(x), task_labels))


def joined_features(x):
    """The tensor (B, features) of a structure of :data:`INPUTS`."""
    if isinstance(x, Pair):
        x = x.left, x.right
    if isinstance(x, (dict, UserDict)):
        x = [value for key, value in x.items() if key != "name"]
    parts = []
    for part in x:
        parts.append(part if isinstance(part, Tensor) else joined_features(part))
    return torch.cat(parts, 1)


class Masked(nn.Module):
    """Attention over tokens, of which a mask leaves some out."""

    def __init__(self, n_out=3):
        super().__init__()
        self.tokens = nn.Embedding(12, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.last = nn.Linear(8, n_out)

    def forward(self, x):
        ids, mask = x["input_ids"], x["attention_mask"].bool()
        hidden = self.block(self.tokens(ids), src_key_padding_mask=~mask)
        kept = mask[..., None]
        mean = (hidden.masked_fill(~kept, 0) * kept).sum(1) / kept.sum(1)
        return Output(logits=self.last(mean), hidden=hidden)


def masked_inputs(n=9, length=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, length + 1, (n, 1), generator=generator)
    mask = (torch.arange(length) < lengths).long()
    ids = torch.randint(1, 12, (n, length), generator=generator) * mask
    return Encoding(input_ids=ids, attention_mask=mask)


def rows(structure, n):
    """Single samples, without the dimension of the batch, of two halves."""
    a, b = structure
    return [(a[i], b[i]) for i in range(n)]


def collate_with(pack):
    """Batches [structure, y, task labels] of samples ((a, b), y, task label)."""

    def collate(samples):
        (a, b), y, labels = default_collate([(tuple(x), y, t) for x, y, t in samples])
        return [pack(a, b), y, labels]

    return collate


def stream_of(data, pack):
    """Experiences of [(x, y), ...] with the task labels 0, 1, ..., the inputs in structures."""
    return _stream(
        [
            AvalancheDataset(
                [[(x, y) for x, y in zip(rows(halves(x), len(x)), y, strict=True)]],
                data_attributes=_attributes(label, y),
                collate_fn=collate_with(pack),
            )
            for label, (x, y) in enumerate(data)
        ]
    )


def dictionary_stream_of(data):
    """The same with samples that are dictionaries, as Avalanche's own tests have them."""
    return _stream(
        [
            AvalancheDataset(
                [
                    [
                        {"a": a, "b": b, "y": y}
                        for (a, b), y in zip(rows(halves(x), len(x)), y, strict=True)
                    ]
                ],
                data_attributes=_attributes(label, y),
                collate_fn=default_collate,
            )
            for label, (x, y) in enumerate(data)
        ]
    )


def plain_stream_of(data):
    """The same with tensors."""
    return tensors_benchmark(train_tensors=data, test_tensors=data, task_labels=[*range(len(data))])


def _attributes(label, y):
    labels = TaskLabels(ConstantSequence(label, len(y)))
    return [labels, DataAttribute(y.tolist(), "targets")] if y.dim() == 1 else [labels]


def _stream(datasets):
    benchmark = with_task_labels(benchmark_from_datasets(train=datasets, test=datasets))
    has_classes = all(hasattr(dataset, "targets") for dataset in datasets)
    return with_classes_timeline(benchmark) if has_classes else benchmark


class DictionaryBatches:
    """A base of strategies for batches that are dictionaries."""

    @property
    def mb_x(self):
        return {name: self.mbatch[name] for name in ("a", "b")}

    @property
    def mb_y(self):
        return self.mbatch["y"]

    @property
    def mb_task_id(self):
        return self.mbatch["targets_task_labels"]

    def _unpack_minibatch(self):
        self.mbatch = {name: value.to(self.device) for name, value in self.mbatch.items()}


class DictionaryNaive(DictionaryBatches, Naive):
    pass


class TupleNaive(Naive):
    """Batches whose inputs are tuples."""

    def _unpack_minibatch(self):
        x, *others = self.mbatch
        moved = type(x)(part.to(self.device) for part in x)
        self.mbatch = [moved, *(other.to(self.device) for other in others)]
