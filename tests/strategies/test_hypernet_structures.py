"""Hypernetworks on batches in structures: as on the tensors in them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from avalanche_hnet import (
    EWC,
    Categorical,
    FixedTarget,
    HyperModel,
    HypernetTemplate,
    HyperNetwork,
    TaskInference,
    logits_of,
)
from tests.support.models import mlp
from tests.support.strategies import naive
from tests.support.structures import (
    INPUTS,
    OUTPUTS,
    DictionaryBatches,
    Structured,
    dictionary_stream_of,
    halves,
    plain_stream_of,
    stream_of,
)

DATA = [
    (torch.randn(20, 6, generator=torch.Generator().manual_seed(n)), torch.arange(20) % 2)
    for n in range(2)
]


class DictionaryHypernet(DictionaryBatches, HypernetTemplate):
    pass


def hyper_model(outputs=None, **options):
    torch.manual_seed(0)
    net = mlp(n_out=4 if options.get("multi_head") else 2)
    target = net if outputs is None else Structured(net, OUTPUTS[outputs])
    return HyperModel(target, HyperNetwork(target, embedding_dim=4, hidden=(8,)), **options)


def criterion(outputs, targets):
    return F.cross_entropy(logits_of(outputs), targets)


def trained(model, benchmark, strategy=HypernetTemplate, in_memory=False, **options):
    template = naive(
        model,
        strategy=strategy,
        lr=0.05,
        criterion=criterion,
        in_memory=in_memory,
        likelihood=Categorical(),
        **options,
    )
    for experience in benchmark.train_stream:
        template.train(experience, shuffle=False)
    return template


REGULARIZERS = {
    "fixed target": lambda: FixedTarget(0.1),
    "weighted": lambda: FixedTarget(0.1, fisher_weights=True),
    "ewc": lambda: EWC(2.0),
    "kronecker": lambda: EWC(2.0, structure="kronecker"),
}


@pytest.mark.parametrize("regularizer", REGULARIZERS)
@pytest.mark.parametrize(
    ("inputs", "outputs", "multi_head"),
    [
        ("dict", "dict", False),
        ("tuple", "tuple", True),
        ("encoding", "dataclass", True),
        ("dataclass", "named tuple", False),
        ("dictionary batches", "dict", False),
    ],
)
def test_training_is_that_on_tensors(inputs, outputs, multi_head, regularizer):
    make = REGULARIZERS[regularizer]
    plain, model = hyper_model(multi_head=multi_head), hyper_model(outputs, multi_head=multi_head)
    trained(plain, plain_stream_of(DATA), regularizer=make(), prior_variance=1.0)
    if inputs == "dictionary batches":
        benchmark, strategy = dictionary_stream_of(DATA), DictionaryHypernet
    else:
        benchmark, strategy = stream_of(DATA, INPUTS[inputs]), HypernetTemplate
    trained(model, benchmark, strategy, regularizer=make(), prior_variance=1.0)
    pairs = zip(plain.named_parameters(), model.named_parameters(), strict=True)
    for (name, expected), (other, values) in pairs:
        assert other == name
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("multi_head", [False, True])
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_outputs_have_the_kind_of_the_target(outputs, multi_head):
    plain, model = hyper_model(multi_head=multi_head), hyper_model(outputs, multi_head=multi_head)
    for network in (plain, model):
        for experience in plain_stream_of(DATA).train_stream:
            network.adaptation(experience)
    x, labels = torch.randn(9, 6), torch.arange(9) % 2
    structure = INPUTS["dict"](*halves(x))
    for given in (labels, 1):
        for training in (True, False):
            returned = model.train(training)(structure, given)
            assert type(returned) is type(OUTPUTS[outputs](x))
            torch.testing.assert_close(logits_of(returned), plain.train(training)(x, given))
    plain.eval(), model.eval()
    with torch.no_grad():
        expected = plain.forward_tasks(x, [0, 1])
        torch.testing.assert_close(model.forward_tasks(structure, [0, 1]), expected)
        torch.testing.assert_close(model(structure, None)[1], expected[1])
        alone = model.main_network(1)(structure)
        torch.testing.assert_close(logits_of(alone), expected[1])
        of_inference = TaskInference(model)(structure)
        torch.testing.assert_close(of_inference, TaskInference(plain)(x))
        assert of_inference.dtype == torch.float32


def test_a_target_that_vmap_cannot_run():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 2)

        def forward(self, x):
            out = self.layer(torch.cat([x["a"], x["b"]], 1))
            return {"logits": out if out.sum().item() < 1e9 else -out}

    target = Branching()
    model = HyperModel(target, HyperNetwork(target, embedding_dim=4, hidden=(8,)))
    for experience in plain_stream_of(DATA).train_stream:
        model.adaptation(experience)
    x = INPUTS["dict"](*halves(torch.randn(5, 6)))
    model.eval()
    with torch.no_grad():
        of_tasks = model.forward_tasks(x, [0, 1])
        for task in (0, 1):
            torch.testing.assert_close(of_tasks[task], model(x, task)["logits"])


def test_dictionary_batches_without_a_reading_are_refused():
    with pytest.raises(TypeError, match=r"keys \['a', 'b', 'y', 'targets_task_labels'\].*mb_x"):
        trained(hyper_model("dict"), dictionary_stream_of(DATA))


def test_batches_in_structures_are_left_to_their_loader():
    benchmark, (one, other) = stream_of(DATA, INPUTS["dict"]), [hyper_model("dict") for _ in "12"]
    trained(one, benchmark, in_memory=False)
    with pytest.warns(UserWarning, match="Avalanche's own loader"):
        trained(other, benchmark, in_memory=True)
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(values, expected) for values, expected in pairs)
