"""Linearised predictions under a Kronecker-factored posterior, against explicit matrices."""

import pytest
import torch
from torch import nn

from avalanche_hnet.core.posterior.at_mean import at_mean
from tests.support.kronecker import linearised, trained
from tests.support.models import (
    OwnParameter,
    TiedWeights,
    TwiceUsed,
    WeightUsedOutsideItsLayer,
    lenet,
    mlp,
)
from tests.support.posteriors import CLOSE

pytestmark = pytest.mark.usefixtures("float64")


class Sequence(nn.Module):
    """Embedding, attention-free mixing of tokens, a norm and a linear layer on a sequence."""

    def __init__(self, **options):
        super().__init__()
        self.embedding = nn.Embedding(9, 4, **options)
        self.norm, self.layer, self.head = nn.LayerNorm(4), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.layer(self.norm(self.embedding(x))).tanh().mean(1))


def grouped():
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 16, 2)
    )


CASES = {
    "mlp": (mlp, lambda: torch.randn(5, 6)),
    "no bias": (lambda: nn.Linear(6, 3, bias=False), lambda: torch.randn(5, 6)),
    "cnn": (lenet, lambda: torch.randn(5, 1, 16, 16)),
    "groups": (grouped, lambda: torch.randn(5, 4, 4, 4)),
    "sequence": (Sequence, lambda: torch.randint(0, 9, (5, 6))),
    "padding": (lambda: Sequence(padding_idx=3), lambda: torch.randint(0, 9, (5, 6))),
    "frequencies": (
        lambda: Sequence(scale_grad_by_freq=True),
        lambda: torch.randint(0, 9, (5, 6)),
    ),
    "twice": (TwiceUsed, lambda: torch.randn(5, 6)),
    "tied": (TiedWeights, lambda: torch.randint(0, 12, (5, 4))),
    "outside": (WeightUsedOutsideItsLayer, lambda: torch.randn(5, 6)),
    "parameter": (OwnParameter, lambda: torch.randn(5, 6)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("n_experiences", [1, 2])
def test_equals_explicit_matrices(case, n_experiences):
    make, inputs = CASES[case]
    model = make().eval()
    outputs = model(inputs())
    batches = [(inputs(), torch.randn_like(outputs)) for _ in range(n_experiences)]
    posterior = trained(model, batches)
    x = inputs()
    expected, variance = linearised(model, posterior, x)
    with at_mean(model, posterior):
        found = posterior.output_variance(model, x)
    torch.testing.assert_close(found[0], expected, **CLOSE)
    torch.testing.assert_close(found[1], variance, **CLOSE)
