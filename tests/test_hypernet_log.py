import pytest
import torch

from avalanche_hnet.core.regularizers import Penalty
from avalanche_hnet.strategies.hypernet_log import statistics


def parameter(gradient):
    made = torch.nn.Parameter(torch.zeros(len(gradient)))
    made.grad = torch.tensor(gradient)
    return made


def test_losses_norms_and_cosine():
    weight, bias = parameter([3.0, 0.0]), parameter([4.0])
    step = {weight: torch.tensor([1.0, 2.0]), bias: torch.tensor([2.0])}
    penalty = Penalty(torch.tensor(0.25), {"weight": torch.tensor([0.0, 2.0])}, {})
    values = statistics(
        torch.tensor([1.5]), torch.tensor(0.5), [weight, bias], step, {"weight": weight}, penalty
    )
    assert {name: value.item() for name, value in values.items()} == pytest.approx(
        {
            "TaskLoss": 1.5,
            "Prior": 0.5,
            "Regularizer": 0.25,
            "Loss": 1.75,
            "StepNorm": 3.0,
            "GradientNorm": 5.0,
            "RegularizerGradientNorm": 2.0,
            # Of the parameters that are regularised alone.
            "RegularizerStepCosine": 4 / (2 * 5**0.5),
        }
    )


def test_without_regulariser_and_without_gradients():
    weight = torch.nn.Parameter(torch.zeros(2))
    values = statistics(torch.tensor([1.5]), None, [weight], {}, {}, None)
    assert {name: value.item() for name, value in values.items()} == {
        "TaskLoss": 1.5,
        "Regularizer": 0.0,
        "Loss": 1.5,
        "StepNorm": 0.0,
        "GradientNorm": 0.0,
    }


def test_there_is_no_cosine_with_nothing():
    weight = parameter([1.0])
    penalty = Penalty(torch.tensor(0.0), {"weight": torch.zeros(1)}, {})
    values = statistics(
        torch.tensor(1.0), None, [weight], {weight: torch.ones(1)}, {"weight": weight}, penalty
    )
    assert "RegularizerStepCosine" not in values
    assert values["RegularizerGradientNorm"] == 0
