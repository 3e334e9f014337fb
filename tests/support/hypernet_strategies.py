"""What the tests of the strategy of hypernetworks share."""

import torch

from tests.support.hypernets import hyper_model, learner

PREFIX = "hypernetwork."


def adam(parameters, lr=0.01):
    return torch.optim.Adam(parameters, lr)


CHUNKS = {"chunk_size": 13}


OWN_CHUNKS = {"chunk_size": 13, "task_specific_chunk_embeddings": True}


def trained(stream, regularizer=None, *plugins, model=None, seed=0, **options):
    """A model and its weights after each experience."""
    torch.manual_seed(seed)
    model = hyper_model() if model is None else model()
    weights, results = [], []
    make = options.pop("optimizer", None)
    if make is not None:
        options["optimizer"] = make(model.parameters())
    strategy = learner(model, regularizer, *plugins, **options)
    for experience in stream:
        strategy.train(experience, shuffle=False)
        weights.append({n: p.detach().clone() for n, p in model.named_parameters()})
        results.append(strategy)
    return model, weights


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def model_weights(make):
    torch.manual_seed(0)
    return {n: p.detach() for n, p in make().named_parameters()}
