"""Predictions for inputs and outputs in structures are those of the network inside."""

import pytest
import torch
from torch import nn

from avalanche_hnet import Gaussian, GaussianPosterior, predict
from tests.support.models import MultiHead, TwiceUsed, mlp
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

METHODS = ["map", "sample", "linearized"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def posterior_of(model):
    posterior, parameters = GaussianPosterior(), dict(model.named_parameters())
    generator = torch.Generator().manual_seed(3)
    fisher = {n: torch.rand(p.shape, generator=generator).to(p) for n, p in parameters.items()}
    everything = {n: torch.ones_like(p, dtype=torch.bool) for n, p in parameters.items()}
    posterior.update(parameters, fisher, 50, everything)
    return posterior


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("inputs", "outputs"), [*zip(INPUTS, [*OUTPUTS, "dict"], strict=True)])
def test_classes_and_regression(method, inputs, outputs):
    net = TwiceUsed().double()
    model = Structured(net, OUTPUTS[outputs])
    x = torch.randn(7, 6).double()
    structure = INPUTS[inputs](*halves(x))
    for likelihood in (None, Gaussian(0.5)):
        expected = predict(net, posterior_of(net), x, method, likelihood=likelihood)
        values = predict(model, posterior_of(model), structure, method, likelihood=likelihood)
        torch.testing.assert_close(values, expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_task_of_a_multi_task_model(method):
    net = MultiHead()
    for experience in task_stream(n_tasks=2).train_stream:
        adapt(net, experience)
    model = StructuredMultiTask(net)
    x = torch.randn(7, 6)
    expected = predict(net, posterior_of(net), x, method, task_label=1)
    values = predict(model, posterior_of(model), halves(x), method, task_label=1)
    torch.testing.assert_close(values, expected)


@pytest.mark.parametrize("method", METHODS)
def test_masked_attention_against_single_samples(method):
    model, x = Masked().double(), masked_inputs(5)
    posterior = posterior_of(model)
    together = predict(model, posterior, x, method)
    for n in range(5):
        one = predict(model, posterior, {k: v[n : n + 1] for k, v in x.items()}, method)
        torch.testing.assert_close(one[0], together[n])


@pytest.mark.parametrize("method", ["map", "linearized"])
def test_no_samples(method):
    model = Structured(mlp())
    x = {"a": torch.zeros(0, 3), "b": torch.zeros(0, 3)}
    assert predict(model, posterior_of(model), x, method).shape == (0, 3)


class Squeezing(nn.Sequential):
    def forward(self, x):
        return super().forward(x).squeeze()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n_out", "likelihood"), [(3, None), (1, Gaussian(0.5))])
def test_one_sample_of_a_model_that_squeezes(method, n_out, likelihood):
    model, x = Squeezing(mlp(n_out=n_out)).double(), torch.randn(4, 6).double()
    options = {"method": method, "likelihood": likelihood}
    together = predict(model, posterior_of(model), x, **options)
    alone = predict(model, posterior_of(model), x[2:3], **options)
    for values, expected in zip(
        (alone,) if likelihood is None else alone,
        (together,) if likelihood is None else together,
        strict=True,
    ):
        torch.testing.assert_close(values, expected[2:3])
