import pytest
import torch
from torch import nn

from avalanche_hnet.core.fisher.alignment import active_rows, misaligned, random_factor
from avalanche_hnet.core.fisher.one_task import OneTask
from avalanche_hnet.core.fisher.recording import record

pytestmark = pytest.mark.usefixtures("float64")

N = 6


class Rows(nn.Module):
    """A layer on the rows of a matrix times the inputs, and back."""

    def __init__(self, matrix):
        super().__init__()
        self.layer, self.matrix = nn.Linear(3, 3), matrix

    def forward(self, x):
        matrix = self.matrix.to(x.dtype)
        return matrix.T @ self.layer(matrix @ x).tanh()


def recorded(matrix, x):
    model = Rows(matrix).to(x.dtype)
    return record(OneTask(model, dict(model.named_parameters()), None), x, ["layer"])


def two_of_one_sample():
    matrix = torch.eye(N)
    matrix[0] = matrix[1]
    return matrix


def mixed():
    matrix = torch.eye(N)
    matrix[2, 3] = 0.5
    return matrix


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("matrix", "is_aligned"),
    [
        (torch.eye(N), True),
        (torch.diag(torch.tensor([1.0, 0, 1, 0, 1, 0])), True),
        (torch.eye(N).flip(0), False),
        (two_of_one_sample(), False),
        (mixed(), False),
    ],
)
def test_rows_of_other_samples_are_found(matrix, is_aligned, dtype):
    outputs, recording = recorded(matrix, torch.randn(N, 3).to(dtype))
    wrong = misaligned(recording, outputs, dtype, ["layer"])
    assert wrong == (set() if is_aligned else {"layer"})


def test_only_the_layers_that_are_named_are_looked_at():
    outputs, recording = recorded(torch.eye(N).flip(0), torch.randn(N, 3))
    assert misaligned(recording, outputs, outputs.dtype, []) == set()


def test_active_rows_have_the_largest_gradients():
    scale = torch.tensor([0, 0, 1.0, 0.1, 0, 5])
    outputs, recording = recorded(torch.diag(scale), torch.ones(N, 3))
    rows = active_rows(recording, outputs, torch.ones_like(outputs), ["layer"])
    assert rows.tolist() == [2, 5]


def test_random_factors_are_the_same_for_the_same_shape():
    state = torch.get_rng_state()
    torch.testing.assert_close(random_factor(torch.ones(3, 2)), random_factor(torch.zeros(3, 2)))
    assert torch.equal(torch.get_rng_state(), state)
