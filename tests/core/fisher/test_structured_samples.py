"""Inputs and outputs in structures: the Fisher is that of the network inside."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from avalanche_hnet import Categorical, Gaussian, diagonal_fisher
from tests.support.models import MultiHead, OwnParameter, TwiceUsed, mlp
from tests.support.oracles import add_squares, assert_close
from tests.support.streams import adapt, task_stream
from tests.support.structures import (
    INPUTS,
    OUTPUTS,
    Masked,
    Structured,
    StructuredMultiTask,
    halves,
    masked_inputs,
)

N = 9


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def without_prefix(fisher):
    return {name.removeprefix("net."): values for name, values in fisher.items()}


class RandomState(nn.Module):
    """What neither a rule nor vmap can do."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(6, 3))

    def forward(self, x):
        return (x @ self.matrix) * (1.0 if x.sum().item() < 1e9 else 2.0)


@pytest.mark.parametrize("net", [mlp, TwiceUsed, OwnParameter, RandomState])
@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.filterwarnings("ignore:.*one sample at a time")
def test_every_input_under_every_method(net, inputs):
    net = net().double()
    x, y = torch.randn(N, 6).double(), torch.arange(N) % 3
    batches = [(INPUTS[inputs](*halves(x[i : i + 4])), y[i : i + 4]) for i in (0, 4, 8)]
    expected = diagonal_fisher(net, [(x, y)])
    assert_close(without_prefix(diagonal_fisher(Structured(net), batches)), expected)


@pytest.mark.parametrize("kind", ["empirical", "sampled", "exact"])
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_every_output_and_kind(outputs, kind):
    net = mlp().double()
    x, y = torch.randn(N, 6).double(), torch.arange(N) % 3
    model = Structured(net, OUTPUTS[outputs])
    batches = [({"a": x[:, :3], "b": x[:, 3:]}, y)]
    expected = diagonal_fisher(net, [(x, y)], kind=kind)
    assert_close(without_prefix(diagonal_fisher(model, batches, kind=kind)), expected)


def test_regression_with_a_tuple():
    net = mlp().double()
    x, y = torch.randn(N, 6).double(), torch.randn(N, 3).double()
    options = {"likelihood": Gaussian(0.5), "max_samples": 5}
    fisher = diagonal_fisher(Structured(net, OUTPUTS["tuple"]), [(halves(x), y)], **options)
    assert_close(without_prefix(fisher), diagonal_fisher(net, [(x, y)], **options))


def test_a_batch_of_several_tasks():
    stream = task_stream(n_tasks=2).train_stream
    net = MultiHead()
    for experience in stream:
        adapt(net, experience)
    x, y, t = torch.randn(N, 6), torch.arange(N) % 2, torch.arange(N) % 2
    fisher = diagonal_fisher(StructuredMultiTask(net), [(INPUTS["encoding"](*halves(x)), y, t)])
    assert_close(without_prefix(fisher), diagonal_fisher(net, [(x, y, t)]), rtol=1e-5)


@pytest.mark.parametrize("max_samples", [None, 6])
def test_masked_attention_against_single_samples(max_samples):
    model = Masked().double()
    x, y = masked_inputs(N), torch.arange(N) % 3
    if max_samples is not None:  # all of them, in other batches
        batches = [({k: v[i : i + 2] for k, v in x.items()}, y[i : i + 2]) for i in (0, 2, 4)]
        n = 6
    else:
        batches, n = [(x, y)], N
    fisher = diagonal_fisher(model, batches, likelihood=Categorical(), max_samples=max_samples)
    parameters = dict(model.eval().named_parameters())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for i in range(n):
        one = model({k: v[i : i + 1] for k, v in x.items()}).logits
        add_squares(total, parameters, F.cross_entropy(one, y[i : i + 1]), 1 / n)
    assert_close(fisher, total, rtol=1e-8)


@pytest.mark.parametrize("max_samples", [5, 2 * N, 3 * N + 1])
def test_mappings_padded_to_different_lengths(max_samples):
    model = Masked().double()
    batches = []
    for seed, length in enumerate((6, 4, 6)):
        x = masked_inputs(N, length, seed)
        if seed == 2:  # the same, in another order
            x = {name: x[name] for name in reversed([*x])}
        batches.append(({**x}, torch.arange(N) % 3))
    fisher = diagonal_fisher(
        model, batches, max_samples=max_samples, generator=torch.Generator().manual_seed(1)
    )
    generator = torch.Generator().manual_seed(1)
    keys = torch.cat([torch.rand(N, generator=generator, dtype=torch.float64) for _ in batches])
    singles = []
    for position in keys.argsort()[:max_samples].tolist():
        x, y = batches[position // N]
        n = position % N
        singles.append(({name: values[n : n + 1] for name, values in x.items()}, y[n : n + 1]))
    assert len(singles) == min(max_samples, 3 * N)
    assert_close(fisher, diagonal_fisher(model, singles), rtol=1e-8)


@pytest.mark.parametrize("with_task_labels", [False, True])
def test_mappings_with_labels_from_a_loader(with_task_labels):
    model = Masked().double()
    x, y = masked_inputs(N), torch.arange(N) % 3
    samples = [{k: v[i] for k, v in x.items()} | {"labels": y[i]} for i in range(N)]
    if with_task_labels:
        samples = [sample | {"targets_task_labels": 0} for sample in samples]
    fisher = diagonal_fisher(model, DataLoader(samples, batch_size=4))
    assert_close(fisher, diagonal_fisher(model, [(x, y)]))


@pytest.mark.parametrize(
    ("batch", "shown"),
    [
        (
            {"x": torch.randn(2, 6), "y": torch.zeros(2).long()},
            r"a dict with the keys \['x', 'y'\]",
        ),
        ([torch.randn(2, 6)], r"a list of \['Tensor'\]"),
        (torch.randn(2, 6), "a Tensor"),
    ],
)
def test_other_batches_are_refused(batch, shown):
    with pytest.raises(ValueError, match=f"batches must yield.*'labels', got {shown}"):
        diagonal_fisher(mlp(), [batch])


def test_outputs_without_logits_are_refused():
    model = Structured(mlp(), lambda logits: {"scores": logits})
    with pytest.raises(TypeError, match=r"it returned a dict with the keys \['scores'\]"):
        diagonal_fisher(model, [(halves(torch.randn(2, 6)), torch.zeros(2).long())])
