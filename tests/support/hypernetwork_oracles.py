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


def loop_rows(model, x, y, label, activation=torch.tanh):
    """By trunk layer, a (K, I + 1) with a one for the bias, and g (K, O), of one sample (1, …).

    The gradient of the sample's cross-entropy by the layer's weight and bias is Σ_k g_k a_kᵀ.
    """
    hypernetwork, number = model.hypernetwork, model.task_number(label)
    parameters = {n: p.detach() for n, p in hypernetwork.named_parameters()}
    layers = [n for n, m in hypernetwork.trunk.named_children() if isinstance(m, nn.Linear)]
    inputs, outputs, chunks = {n: [] for n in layers}, {n: [] for n in layers}, []
    for k in range(hypernetwork.n_chunks):
        z = parameters[f"embeddings.{number}"]
        for of_chunks in ("chunk_embeddings", f"task_chunk_embeddings.{number}"):
            if of_chunks in parameters:
                z = torch.cat([parameters[of_chunks][k], z])
        for layer in layers:
            weight, bias = (parameters[f"trunk.{layer}.{p}"] for p in ("weight", "bias"))
            inputs[layer].append(torch.cat([z.detach(), torch.ones(1)]))
            h = weight @ z + bias
            outputs[layer].append(h if h.requires_grad else h.requires_grad_())
            z = activation(outputs[layer][-1])
        chunks.append(z @ parameters["output.weight"] + parameters["output.bias"])
    weights = torch.cat(chunks)[: hypernetwork.layout.n_weights]
    if hypernetwork.offset is not None:
        weights = weights + hypernetwork.offset
    nll = nn.functional.cross_entropy(model(x, label, {label: weights}), y)
    wanted = [h for layer in layers for h in outputs[layer]]
    gradients = iter(torch.autograd.grad(nll, wanted))
    return {
        f"trunk.{layer}": (
            torch.stack(inputs[layer]),
            torch.stack([next(gradients) for _ in outputs[layer]]),
        )
        for layer in layers
    }


def loop_factors(model, x, y, labels, weight_sharing):
    """A and G of each layer of the trunk, (1, I + 1, I + 1) and (1, O, O), sample by sample."""
    total = {}
    for n in range(len(x)):
        for name, (a, g) in loop_rows(model, x[n : n + 1], y[n : n + 1], int(labels[n])).items():
            if weight_sharing == "expand":
                pair = sum(torch.outer(v, v) for v in a) / len(a), sum(torch.outer(v, v) for v in g)
            else:
                pair = torch.outer(a.mean(0), a.mean(0)), torch.outer(g.sum(0), g.sum(0))
            before = total.get(name, (0, 0))
            total[name] = tuple(t + p[None] / len(x) for t, p in zip(before, pair, strict=True))
    return total
