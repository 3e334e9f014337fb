import pytest
import torch
from torch import nn

from avalanche_hnet import ChunkedHyperNetwork, HyperNetwork
from avalanche_hnet.core.hypernetworks.chunks import Chunks, SharedChunks, TaskSpecificChunks
from avalanche_hnet.core.hypernetworks.trunk_inputs import Initial, TaskEmbeddings

TASKS = TaskEmbeddings(3, 0.5)


INPUTS = {
    "tasks": TASKS,
    "shared chunks": SharedChunks(TASKS, 4, 2, 2.0),
    "chunks of tasks": TaskSpecificChunks(TASKS, 4, 2, 2.0),
}


def network(inputs):
    """A module with the embeddings of three tasks."""
    module = nn.Module()
    seed, like = torch.tensor(7), torch.zeros(())
    for k, name in enumerate(inputs.lists):
        drawn = [inputs.of_task(task)[k].draw(seed, like) for task in range(3)]
        module.register_module(name, nn.ParameterList(drawn))
    for name, initial in inputs.shared().items():
        module.register_parameter(name, initial.draw(seed, like))
    return module


@pytest.mark.parametrize("kind", INPUTS)
def test_first_layer_and_vectors_take_the_same_inputs(kind):
    inputs = INPUTS[kind]
    module = network(inputs)
    fed = inputs.feed(module, inputs.embed(module, [2, 0], {}), {})
    vectors = nn.Sequential(*inputs.as_vectors())(fed)
    n_chunks = 1 if kind == "tasks" else 4
    assert vectors.shape == (2, n_chunks, inputs.width)
    layer = inputs.first_layer(5)
    expected = nn.functional.linear(vectors, layer.weight, layer.bias)
    torch.testing.assert_close(layer(fed), expected)
    assert torch.equal(vectors[:, 0, -3:], torch.stack([*module.embeddings])[[2, 0]])


@pytest.mark.parametrize("kind", INPUTS)
def test_given_values_replace_embeddings(kind):
    inputs = INPUTS[kind]
    module = network(inputs)
    given = {name: torch.ones_like(p) for name, p in module.named_parameters()}
    fed = inputs.feed(module, inputs.embed(module, [1], given), given)
    assert (nn.Sequential(*inputs.as_vectors())(fed) == 1).all()


@pytest.mark.parametrize("kind", INPUTS)
def test_variance_is_that_of_the_inputs(kind):
    inputs = INPUTS[kind]
    assert inputs.variance == (0.25 if kind == "tasks" else (2 * 4 + 3 * 0.25) / 5)


def test_no_two_embeddings_are_drawn_alike():
    inputs = INPUTS["chunks of tasks"]
    keys = [i.key for task in range(50) for i in inputs.of_task(task)]
    keys += [i.key for i in INPUTS["shared chunks"].shared().values()]
    assert len(set(keys)) == len(keys) == 101
    initial = Initial((2,), 1.0, key=4)
    seed, like = torch.tensor(3), torch.zeros(())
    assert torch.equal(initial.draw(seed, like), initial.draw(seed, like))


@pytest.mark.parametrize("task_specific", [True, False])
def test_chunks_are_composed(task_specific):
    target, options = nn.Linear(5, 4), {"embedding_dim": 3, "hidden": (6,)}
    torch.manual_seed(0)
    composed = HyperNetwork(target, chunks=Chunks(7, 2, 0.5, task_specific), **options)
    torch.manual_seed(0)
    named = ChunkedHyperNetwork(
        target,
        chunk_size=7,
        chunk_embedding_dim=2,
        chunk_embedding_std=0.5,
        task_specific_chunk_embeddings=task_specific,
        **options,
    )
    for hypernetwork in (composed, named):
        hypernetwork.add_task()
    assert composed.state_dict().keys() == named.state_dict().keys()
    assert torch.equal(composed(0), named(0))
