"""Small models that between them have every kind of layer and every difficulty."""

import torch
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from torch import nn


def mlp(n_in=6, n_out=3):
    return nn.Sequential(nn.Linear(n_in, 8), nn.ReLU(inplace=True), nn.Linear(8, n_out))


def lenet(n_out=3, size=16):
    features = nn.Sequential(
        nn.Conv2d(1, 4, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten()
    )
    n_features = features(torch.zeros(1, 1, size, size)).shape[1]
    return nn.Sequential(features, nn.Linear(n_features, 10), nn.ReLU(), nn.Linear(10, n_out))


class TwiceUsed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.again, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.again(self.again(self.first(x).tanh()).tanh()).tanh())


class TiedWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Embedding(12, 8)
        self.decoder = nn.Linear(8, 12, bias=False)
        self.decoder.weight = self.encoder.weight

    def forward(self, x):
        return self.decoder(self.encoder(x).tanh().mean(1))


class TwoNames(nn.Module):
    """Layers, with weights and with statistics, each of which has two names and is used twice."""

    def __init__(self, n_out=2):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, n_out)
        self.second, self.same_norm = self.first, self.norm

    def forward(self, x):
        x = self.norm(self.first(x)).tanh()
        return self.last(self.same_norm(self.second(x)).tanh())


class WeightUsedOutsideItsLayer(nn.Module):
    """An autoencoder whose decoder is the encoder's weight, without calling the layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x):
        return self.layer(x).tanh() @ self.layer.weight


class OwnParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(6, 4))
        self.unused = nn.Parameter(torch.randn(5))
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        return self.last((x @ self.matrix).tanh())


class SamplesNotFirst(nn.Module):
    """Runs its layer on (sequence, batch, features), so dimension 0 is not the samples."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.layer(x.transpose(0, 1)).relu().mean(0))


class Flattened(nn.Module):
    """Runs its layer on (batch · sequence, features)."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.layer(x.flatten(0, 1)).relu().view(*x.shape[:2], 6).mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 6)
        self.lstm = nn.LSTM(6, 7, batch_first=True)
        self.last = nn.Linear(7, 3)

    def forward(self, x):
        return self.last(self.lstm(self.layer(x))[0][:, -1])


class MultiHead(MultiTaskModule):
    """A feature extractor with a multi-task head deep inside."""

    def __init__(self, head=None, n_in=6, n_hidden=8):
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(n_in, n_hidden), nn.Tanh())
        self.output = nn.ModuleDict({"head": head or MultiHeadClassifier(n_hidden)})

    def forward(self, x, task_labels):
        return self.output["head"](self.features(x), task_labels)


class Incremental(nn.Module):
    def __init__(self, n_in=6, n_hidden=8):
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(n_in, n_hidden), nn.Tanh())
        self.head = IncrementalClassifier(n_hidden)

    def forward(self, x):
        return self.head(self.features(x))
