"""Likelihoods, with outputs and targets, and what they are compared with."""

import torch
from torch import nn

from avalanche_hnet import Bernoulli, Categorical, Gaussian

N, C = 6, 4
WEIGHTS = torch.tensor([0.5, 1.0, 2.5, 0.0], dtype=torch.float64)


def padded(shape, padding=-100):
    """Labels of which every third does not count."""
    labels = torch.randint(0, C, shape)
    labels.view(-1)[::3] = padding
    return labels


def double(*shape):
    return torch.randn(shape, dtype=torch.float64)


CASES = {
    "labels": (nn.CrossEntropyLoss, {}, (N, C), lambda: torch.randint(0, C, (N,))),
    "images": (nn.CrossEntropyLoss, {}, (N, C, 2, 3), lambda: torch.randint(0, C, (N, 2, 3))),
    "probabilities": (nn.CrossEntropyLoss, {}, (N, C), lambda: double(N, C).softmax(1)),
    "weights": (nn.CrossEntropyLoss, {"weight": WEIGHTS}, (N, C), lambda: torch.arange(N) % C),
    "weights, probabilities": (
        nn.CrossEntropyLoss,
        {"weight": WEIGHTS},
        (N, C),
        lambda: double(N, C).softmax(1),
    ),
    "smoothing": (
        nn.CrossEntropyLoss,
        {"label_smoothing": 0.2},
        (N, C),
        lambda: torch.randint(0, C, (N,)),
    ),
    "weights, smoothing, padding": (
        nn.CrossEntropyLoss,
        {"weight": WEIGHTS, "label_smoothing": 0.2},
        (N, C, 5),
        lambda: padded((N, 5)),
    ),
    "padding": (nn.CrossEntropyLoss, {}, (N, C, 5), lambda: padded((N, 5))),
    "padded labels": (nn.CrossEntropyLoss, {}, (N, C), lambda: padded((N,))),
    "a class that is ignored": (
        nn.CrossEntropyLoss,
        {"ignore_index": 1},
        (N, C, 5),
        lambda: padded((N, 5), 1),
    ),
    "numbers": (nn.MSELoss, {}, (N, C), lambda: double(N, C)),
    "numbers of images": (nn.MSELoss, {}, (N, C, 2), lambda: double(N, C, 2)),
    "multi-label": (nn.BCEWithLogitsLoss, {}, (N, C), lambda: torch.rand(N, C).round().double()),
    "soft multi-label": (nn.BCEWithLogitsLoss, {}, (N, C, 2), lambda: double(N, C, 2).sigmoid()),
    "one yes or no": (nn.BCEWithLogitsLoss, {}, (N,), lambda: torch.rand(N).round().double()),
    "weighted multi-label": (
        nn.BCEWithLogitsLoss,
        {"pos_weight": WEIGHTS, "weight": WEIGHTS.flip(0)},
        (N, C),
        lambda: torch.rand(N, C).round().double(),
    ),
}
"""By name: a criterion's class and options, the outputs' shape and how targets are made."""

LIKELIHOODS = {
    "plain": (Categorical(), (3, C)),
    "positions": (Categorical(), (3, C, 2)),
    "weights": (Categorical(class_weights=WEIGHTS), (3, C)),
    "smoothing": (Categorical(label_smoothing=0.3), (3, C)),
    "both": (Categorical(class_weights=WEIGHTS, label_smoothing=0.3), (3, C, 2)),
    "a class that is ignored": (Categorical(ignore_index=1), (3, C)),
    "a class of positions that is ignored": (Categorical(ignore_index=1), (3, C, 2)),
    "gaussian": (Gaussian(0.7), (3, C)),
    "gaussian images": (Gaussian(0.7), (3, 2, 3)),
    "bernoulli": (Bernoulli(), (3, C)),
    "bernoulli images": (Bernoulli(), (3, 2, 2)),
    "bernoulli, pos_weight": (Bernoulli(pos_weight=WEIGHTS), (3, C)),
    "bernoulli, both": (Bernoulli(pos_weight=WEIGHTS, weight=WEIGHTS.flip(0)), (3, C)),
    "bernoulli, one number": (Bernoulli(pos_weight=torch.tensor(3.0)), (3, 2, 2)),
}


def single_losses(criterion, options, outputs, targets):
    """The loss of each sample on its own, summed over its positions."""
    one = criterion(**options, reduction="sum")
    return torch.stack([one(outputs[n : n + 1], targets[n : n + 1]) for n in range(len(outputs))])
