from copy import deepcopy

import pytest
import torch
from torch import nn

from avalanche_hnet import diagonal_fisher
from avalanche_hnet.core.common.samples import as_samples
from avalanche_hnet.core.fisher.precision import converted, in_precision
from tests.support.random_models import (
    Attention,
    Autocast,
    Case,
    Flat,
    Model,
    Plain,
    Recurrent,
    TimeFirst,
    Twice,
    single_samples,
)


def test_a_model_is_in_another_type_and_then_in_its_own():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Embedding(3, 2)).half()
    model[2].double()
    before, data = deepcopy(model.state_dict()), [p.data_ptr() for p in model.parameters()]

    def inside():
        with in_precision([*model.modules()], torch.float32):
            assert model[0].weight.dtype == model[1].running_mean.dtype == torch.float32
            assert model[1].num_batches_tracked.dtype == torch.long
            assert model[2].weight.dtype == torch.float64
            raise KeyError

    with pytest.raises(KeyError):
        inside()
    assert [p.data_ptr() for p in model.parameters()] == data
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])


def test_only_coarser_numbers_are_converted():
    assert converted(torch.ones(2).bfloat16(), torch.float32).dtype == torch.float32
    assert converted(torch.ones(2).double(), torch.float32).dtype == torch.float64
    assert converted(torch.arange(2), torch.float32).dtype == torch.long


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "block", [Plain, TimeFirst, Flat, Twice, lambda: Attention(False), lambda: Attention(True)]
)
def test_half_precision_is_right_to_its_rounding(block, dtype):
    model = Model(None, [block(), block()], nn.Linear(4, 3), "mean").eval().to(dtype)
    batches = [(torch.randn(12, 5, 4).to(dtype), torch.arange(12) % 3)]
    right = single_samples(Case(model, batches, ""), torch.float64)
    values = diagonal_fisher(model, batches)
    for name, square in right.items():
        assert values[name].dtype == torch.float32
        error = (values[name].double().sqrt() - square.sqrt()).norm() / square.sqrt().norm()
        assert error < (0.06 if dtype == torch.bfloat16 else 0.01), name
    assert {p.dtype for p in model.parameters()} == {dtype}


@pytest.mark.parametrize("block", [Plain, TimeFirst, Flat, Twice, Recurrent])
@pytest.mark.filterwarnings("ignore:squared gradients of")
def test_autocast_inside_the_model_is_right_to_its_rounding(block):
    model = Model(None, [Autocast(block()), Autocast(block())], nn.Linear(4, 3), "mean").eval()
    batches = [(torch.randn(12, 5, 4), torch.arange(12) % 3)]
    right = single_samples(Case(model, batches, ""), torch.float64)
    for name, value in diagonal_fisher(model, batches).items():
        error = (value.double().sqrt() - right[name].sqrt()).norm() / right[name].sqrt().norm()
        assert error < 0.06, name


class OfOneType(nn.Module):
    """Casts to its own type inside, and so does not run in another."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x.bfloat16())


def test_a_model_that_insists_on_its_type():
    model, x, y = OfOneType().bfloat16(), torch.randn(12, 4), torch.arange(12) % 3
    right = diagonal_fisher(deepcopy(model.layer).float(), [(x.bfloat16().float(), y)])
    values = diagonal_fisher(model, [(x, y)])
    for name in ("weight", "bias"):
        torch.testing.assert_close(values[f"layer.{name}"], right[name], rtol=0.1, atol=0.01)


def test_only_coarser_tensors_of_a_structure_are_converted():
    x = as_samples({"half": torch.randn(3).half(), "fine": torch.randn(3).double()})
    half, fine = converted(x, torch.float32).tensors
    assert (half.dtype, fine.dtype) == (torch.float32, torch.float64)
