"""Small hypernetworks and the strategy that trains them."""

import copy

import torch
from torch import nn
from torch.func import functional_call

from avalanche_hnet import ChunkedHyperNetwork, HyperModel, HypernetTemplate, HyperNetwork
from tests.support.models import mlp
from tests.support.strategies import naive


def hypernetwork(target, *, chunk_size=None, **options):
    """A smooth one, so that no gradient is zero by chance."""
    options = {"embedding_dim": 3, "hidden": (5, 4), "activation": nn.Tanh} | options
    if chunk_size is None:
        return HyperNetwork(target, **options)
    chunks = {"chunk_size": chunk_size, "chunk_embedding_dim": 2}
    return ChunkedHyperNetwork(target, **(chunks | options))


def hyper_model(target=None, *, hypernet=None, **options):
    target = mlp(n_out=2) if target is None else target
    return HyperModel(target, hypernetwork(target, **(hypernet or {})), **options)


def learner(model, regularizer=None, *plugins, **options):
    return naive(model, *plugins, strategy=HypernetTemplate, regularizer=regularizer, **options)


def adapted(model, stream, training=True):
    """The model after taking in all experiences of the stream."""
    for experience in stream:
        model.train(training)
        model.adaptation(experience)
    return model


def run_target(target, model, label, x):
    """The target itself, with the weights that the hypernetwork generates for one task."""
    flat = model.hypernetwork(model.task_number(label))[0]
    return functional_call(copy.deepcopy(target), model.hypernetwork.layout.views(flat), (x,))


def values(model):
    return {n: t.clone() for n, t in model.state_dict().items() if isinstance(t, torch.Tensor)}
