"""A strategy with small batches, and a plugin that records what it does."""

import warnings

import torch
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from torch import nn


def naive(model, *plugins, strategy=Naive, lr=0.1, criterion=None, optimizer=None, **options):
    defaults = {"train_mb_size": 5, "train_epochs": 2, "eval_mb_size": 20}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No loggers specified")
        evaluator = options.pop("evaluator", None) or EvaluationPlugin()
    return strategy(
        model=model,
        optimizer=optimizer or torch.optim.SGD(model.parameters(), lr),
        criterion=criterion or nn.CrossEntropyLoss(),
        plugins=[*plugins],
        evaluator=evaluator,
        **(defaults | options),
    )


class Recorder(SupervisedPlugin):
    """Losses that are differentiated, and weights after each iteration."""

    def __init__(self):
        super().__init__()
        self.losses, self.weights = [], []

    def after_backward(self, strategy, **kwargs):
        self.losses.append(strategy.loss.item())

    def after_training_iteration(self, strategy, **kwargs):
        self.weights.append({n: p.detach().clone() for n, p in strategy.model.named_parameters()})


def run(plugin, model, stream, *others, shuffle=False, **options):
    strategy = naive(model, plugin, *others, **options)
    for experience in stream:
        strategy.train(experience, shuffle=shuffle)
    return strategy
