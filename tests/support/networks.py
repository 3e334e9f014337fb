"""Networks of many kinds, each with a stream that it can learn, for posteriors with layers."""

from dataclasses import dataclass, field

import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.models import DynamicModule, MTSlimResNet18, SimpleMLP, SlimResNet18, as_multitask
from torch import nn

from avalanche_hnet import BlockMultiHeadClassifier, TaskStatisticsPlugin
from tests.support.models import Incremental, MultiHead, Recurrent


class Transformer(nn.Module):
    """Classifies sequences of tokens by the mean over positions after one encoder layer."""

    def __init__(self, n_tokens=12, size=8, n_out=2):
        super().__init__()
        self.embedding = nn.Embedding(n_tokens, size)
        self.encoder = nn.TransformerEncoderLayer(
            size, nhead=2, dim_feedforward=16, dropout=0.1, batch_first=True
        )
        self.head = nn.Linear(size, n_out)

    def forward(self, x):
        return self.head(self.encoder(self.embedding(x)).mean(1))


class Growing(DynamicModule):
    """Has one layer more from its second experience on."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 2)
        self.side = nn.ModuleDict()

    def adaptation(self, experience):
        if experience.current_experience == 1 and not self.side:
            self.side["layer"] = nn.Linear(6, 8)

    def forward(self, x):
        hidden = self.first(x)
        for layer in self.side.values():
            hidden = hidden + layer(x)
        return self.last(hidden.tanh())


@dataclass(frozen=True)
class Case:
    """A network, its stream, and what is expected of its posterior.

    Attributes:
        make: the model.
        layers: names of layers that have products in the end; None for all with weights.
        shape: of a sample.
        tasks: whether each experience has a task label of its own.
        offset: whether each has classes of its own.
        n_tokens: if inputs are numbers of tokens.
        n_classes: of each experience.
        plugins: others that take part.
    """

    make: object
    layers: set | None = None
    shape: tuple = (6,)
    tasks: bool = False
    offset: bool = False
    n_tokens: int | None = None
    n_classes: int = 2
    plugins: object = field(default=list)

    def benchmark(self, n_experiences=3, n_samples=16):
        generator = torch.Generator().manual_seed(3)
        data = []
        for number in range(n_experiences):
            y = torch.arange(n_samples) % self.n_classes
            if self.n_tokens:
                x = torch.randint(self.n_tokens, (n_samples, *self.shape), generator=generator)
            else:
                x = torch.randn(n_samples, *self.shape, generator=generator)
                x = x + (y - 0.5).view(-1, *[1] * len(self.shape))
            data.append((x, y + self.n_classes * number * self.offset))
        labels = [*range(n_experiences)] if self.tasks else [0] * n_experiences
        return tensors_benchmark(train_tensors=data, test_tensors=data, task_labels=labels)


IMAGE = (3, 32, 32)
BODY = {"features.1"}
HEADS = {f"output.head.classifiers.{t}.classifier" for t in range(3)}

NETWORKS = {
    "ResNet-18": Case(lambda: SlimResNet18(2, nf=2), None, IMAGE),
    "ResNet-18 with heads": Case(
        lambda: MTSlimResNet18(2, nf=1), None, IMAGE, tasks=True,
        plugins=lambda: [TaskStatisticsPlugin()],
    ),
    "transformer": Case(
        Transformer, {"embedding", "encoder.linear1", "encoder.linear2", "head"}, (5,), n_tokens=12
    ),
    "LSTM": Case(Recurrent, {"layer", "last"}, (4, 5), n_classes=3),
    "MultiHeadClassifier": Case(MultiHead, BODY | HEADS, tasks=True),
    "IncrementalClassifier": Case(Incremental, BODY | {"head.classifier"}, offset=True),
    "BlockMultiHeadClassifier": Case(
        lambda: MultiHead(BlockMultiHeadClassifier(8)), BODY | {"output.head.classifier"},
        tasks=True,
    ),
    "as_multitask(SimpleMLP)": Case(
        lambda: as_multitask(SimpleMLP(2, 6, 8), "classifier"), None, tasks=True
    ),
    "a layer more": Case(Growing, {"first", "last", "side.layer"}),
}  # fmt: skip


def layers_with_weights(model):
    """Linear layers, convolutions and embeddings, by name."""
    kinds = nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding
    return {name for name, module in model.named_modules() if isinstance(module, kinds)}
