"""Networks and strategies that learn the functions of Regression1D."""

import warnings

import torch
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from avalanche_hnet.metrics import mse_metrics
from tests.support.strategies import naive


def tensors(experience):
    """All inputs and targets, (N, 1) each."""
    x, y = zip(*((x, y) for x, y, *_ in experience.dataset), strict=True)
    return torch.stack(x), torch.stack(y)


def network():
    return nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))


def trainer(model, *plugins, epochs=60, metrics=None, loggers=(), **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No loggers specified")
        evaluator = EvaluationPlugin(
            *(metrics or [mse_metrics(experience=True, stream=True)]), loggers=list(loggers)
        )
    options = {"train_mb_size": 20, "eval_mb_size": 20, "criterion": nn.MSELoss()} | options
    optimizer = options.pop("optimizer", None) or torch.optim.Adam(model.parameters(), 0.01)
    return naive(
        model, *plugins, optimizer=optimizer, train_epochs=epochs, evaluator=evaluator, **options
    )
