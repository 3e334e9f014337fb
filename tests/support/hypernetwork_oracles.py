"""Hypernetworks of each kind, and what they generate: by the authors, and by a loop."""

import pytest
import torch
from torch import nn

from avalanche_hnet import ChunkedHyperNetwork, HyperNetwork
from tests.support import models

W = 84  # weights of the target


def target():
    return models.mlp(n_in=5, n_out=4)


CHUNKS = {
    "full": None,
    "chunks that divide": {"chunk_size": 12},
    "chunks that do not divide": {"chunk_size": 13},
    "chunks of one": {"chunk_size": 1},
    "one chunk": {"chunk_size": W},
    "chunks of tasks": {"chunk_size": 25, "task_specific_chunk_embeddings": True},
}


def make(kind="full", n_tasks=3, of=None, **options):
    """A hypernetwork of one of the kinds, with tasks."""
    of = target() if of is None else of
    options = {"embedding_dim": 3, "hidden": (6, 5)} | options
    if CHUNKS[kind] is None:
        hypernetwork = HyperNetwork(of, **options)
    else:
        hypernetwork = ChunkedHyperNetwork(
            of, **{"chunk_embedding_dim": 2} | CHUNKS[kind] | options
        )
    for _ in range(n_tasks):
        hypernetwork.add_task()
    return hypernetwork


def authors(hypernetwork, activation):
    """The authors' hypernetwork with the same weights, and our names of its parameters."""
    hnets = pytest.importorskip("hypnettorch.hnets")
    options = {
        "cond_in_size": hypernetwork.embedding_dim,
        "layers": [m.out_features for m in hypernetwork.trunk if isinstance(m, nn.Linear)],
        "activation_fn": activation,
        "num_cond_embs": hypernetwork.n_tasks,
        "verbose": False,
    }
    shapes = [list(shape) for shape in hypernetwork.layout.shapes.values()]
    if isinstance(hypernetwork, ChunkedHyperNetwork):
        of_tasks = hypernetwork.task_specific_chunk_embeddings
        chunks = (
            hypernetwork.task_chunk_embeddings[0] if of_tasks else hypernetwork.chunk_embeddings
        )
        theirs = hnets.ChunkedHMLP(
            shapes,
            hypernetwork.chunk_size,
            chunk_emb_size=chunks.shape[1],
            cond_chunk_embs=of_tasks,
            **options,
        )
    else:
        theirs = hnets.HMLP(shapes, **options)
    parameters = dict(hypernetwork.named_parameters())
    order = ("embeddings", "trunk", "output", "chunk_embeddings", "task_chunk_embeddings")
    names = [n for part in order for n in parameters if n.split(".")[0] == part]
    with torch.no_grad():
        for name, parameter in zip(names, theirs.internal_params, strict=True):
            parameter.copy_(as_theirs(name, parameters[name]))
    return theirs, names


def as_theirs(name, tensor):
    """Their output layer is the transpose of ours."""
    return tensor.T if name == "output.weight" else tensor


def loop_weights(hypernetwork, task, parameters, activation=torch.tanh):
    """The weights (W,) of one task from ``parameters``, chunk by chunk and layer by layer."""
    layers = [n for n, m in hypernetwork.trunk.named_children() if isinstance(m, nn.Linear)]
    chunks = []
    for k in range(hypernetwork.n_chunks):
        z = parameters[f"embeddings.{task}"]
        for of_chunks in ("chunk_embeddings", f"task_chunk_embeddings.{task}"):
            if of_chunks in parameters:
                z = torch.cat([parameters[of_chunks][k], z])
        for layer in layers:
            weight, bias = (parameters[f"trunk.{layer}.{p}"] for p in ("weight", "bias"))
            z = activation(weight @ z + bias)
        chunks.append(z @ parameters["output.weight"] + parameters["output.bias"])
    return torch.cat(chunks)[: hypernetwork.layout.n_weights]


def assert_same(found, expected, tolerance=1e-12):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
