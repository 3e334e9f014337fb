"""Data and models for what is served from memory."""

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import TransformGroups, make_avalanche_dataset
from avalanche.training.plugins import SupervisedPlugin
from torch import nn
from torch.utils.data import TensorDataset

CPU = torch.device("cpu")


class Batches(SupervisedPlugin):
    """Copies of all batches that a strategy sees."""

    def __init__(self):
        super().__init__()
        self.training, self.evaluation, self.loaders = [], [], []

    def before_training_iteration(self, strategy, **kwargs):
        self.training.append([t.clone() for t in strategy.mbatch])
        self.loaders.append(type(strategy.dataloader))

    def before_eval_iteration(self, strategy, **kwargs):
        self.evaluation.append([t.clone() for t in strategy.mbatch])
        self.loaders.append(type(strategy.dataloader))


def random_stream(transform=None, target_transform=None, source=None):
    x = torch.rand(10, 3, 8, 8)
    source = source or TensorDataset(x, torch.arange(10) % 2)
    groups = TransformGroups({"train": (transform, target_transform), "eval": (None, None)})
    data = make_avalanche_dataset(source, transform_groups=groups)
    return benchmark_from_datasets(train=[data], test=[data])


def image_model():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 2))


class Jitter:
    """Random, but always the same."""

    def __call__(self, x):
        state = torch.get_rng_state()
        torch.manual_seed(1)
        noise = torch.rand(x.shape)
        torch.set_rng_state(state)
        return x + noise

    def __repr__(self):
        return "Jitter()"
