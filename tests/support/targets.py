"""Modules of all kinds as targets of a HyperModel, and streams for them."""

import torch
import torchvision
from avalanche.benchmarks import tensors_benchmark
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from tests.support.hypernets import hyper_model
from tests.support.models import OwnParameter, Recurrent, TiedWeights, TwoNames, lenet


def with_batch_norm(n_out=2):
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, n_out))


def with_weight_norm(n_out=2):
    return nn.Sequential(weight_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, n_out))


class Transformer(nn.Module):
    def __init__(self, n_out=2):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.embedding = nn.Linear(5, 8)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.last = nn.Linear(8, n_out)

    def forward(self, x):
        return self.last(self.encoder(self.embedding(x)).mean(1))


TARGETS = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=3), (3, 32, 32)),
    "lenet": (lenet, (1, 16, 16)),
    "transformer": (Transformer, (4, 5)),
    "own parameter": (OwnParameter, (6,)),
    "tied weights": (TiedWeights, None),
    "two names": (TwoNames, (6,)),
    "lstm": (Recurrent, (4, 5)),
    "weight_norm": (with_weight_norm, (6,)),
    "batch norm": (with_batch_norm, (6,)),
}


def stream_for(shape, n_samples=6):
    """Two tasks of two classes; inputs are integers from 0 to 11 if ``shape`` is None."""
    y = torch.arange(n_samples) % 2
    inputs = [
        torch.randint(12, (n_samples, 4)) if shape is None else torch.randn(n_samples, *shape)
        for _ in range(2)
    ]
    data = [(x, y) for x in inputs]
    return tensors_benchmark(train_tensors=data, test_tensors=data, task_labels=[0, 1])


def partial(remaining, target=None):
    """Only the last layer is generated."""
    target = with_batch_norm() if target is None else target
    return hyper_model(target, hypernet={"generate": "3.*"}, remaining=remaining)
