"""Networks that between them have every kind of layer, and inputs for each."""

import torch
from avalanche.models import IncrementalClassifier
from torch import nn

from tests.support import models

N = 9


def convolutions():
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2, padding_mode="circular"),
        nn.Tanh(),
        nn.Conv2d(6, 6, 3, padding="same", padding_mode="reflect", dilation=2),
        nn.Conv2d(6, 6, (3, 2), padding=(1, 0), padding_mode="replicate", groups=6, bias=False),
        nn.Flatten(),
        nn.Linear(6 * 5 * 4, 3),
    )


def normalisations():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.GroupNorm(2, 4),
        nn.Flatten(),
        nn.Linear(64, 5),
        nn.BatchNorm1d(5),
        nn.LayerNorm(5),
        nn.Linear(5, 3),
    )
    model(torch.randn(20, 2, 6, 6))  # running statistics that are not 0 and 1
    return model


def real(*shape):
    return lambda: torch.randn(N, *shape)


def tokens(length=5):
    return lambda: torch.randint(0, 12, (N, length))


CASES = {
    "mlp": (models.mlp, real(6)),
    "lenet": (models.lenet, real(1, 16, 16)),
    "convolutions": (convolutions, real(4, 9, 9)),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.Flatten(), nn.Linear(36, 3)),
        real(2, 9),
    ),
    "conv3d": (
        lambda: nn.Sequential(nn.Conv3d(2, 4, 3, stride=(1, 2, 1)), nn.Flatten(), nn.Linear(32, 3)),
        real(2, 4, 5, 4),
    ),
    "normalisations": (normalisations, real(2, 6, 6)),
    "embedding": (
        lambda: nn.Sequential(
            nn.Embedding(12, 8, padding_idx=0),
            nn.LayerNorm(8),
            nn.Linear(8, 4),
            nn.Flatten(),
            nn.Linear(20, 3),
        ),
        tokens(),
    ),
    "transformer": (
        lambda: nn.Sequential(
            nn.Linear(5, 8),
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            nn.Flatten(),
            nn.Linear(24, 3),
        ),
        real(3, 5),
    ),
    "used twice": (models.TwiceUsed, real(6)),
    "tied": (models.TiedWeights, tokens()),
    "weight outside its layer": (models.WeightUsedOutsideItsLayer, real(6)),
    "own parameter": (models.OwnParameter, real(6)),
    "samples not first": (models.SamplesNotFirst, real(N, 5)),
    "flattened": (models.Flattened, real(4, 5)),
    "recurrent": (models.Recurrent, real(4, 5)),
    "incremental": (lambda: IncrementalClassifier(6, 3, masking=False), real(6)),
}


def in_batches(*tensors, size=4):
    return list(zip(*(t.split(size) for t in tensors), strict=True))
