import pytest
import torch
from torch import nn

from avalanche_hnet import Gaussian, predict
from avalanche_hnet.core.fisher.output_variance import output_variance
from tests.support.models import lenet, mlp
from tests.support.posteriors import CLOSE, moments, posterior_of

pytestmark = pytest.mark.usefixtures("float64")


def test_variance_of_outputs_that_are_not_needed_is_left_at_zero():
    model, x = mlp(), torch.randn(4, 6)
    variances = {n: torch.rand_like(p) for n, p in model.named_parameters()}
    outputs, every = output_variance(model.eval(), variances, x)
    chosen = torch.tensor([True, False, True])
    found = output_variance(model, variances, x, is_needed=lambda _: chosen)
    torch.testing.assert_close(found, (outputs, every * chosen), **CLOSE)
    del variances["0.weight"]  # certain
    _, fewer = output_variance(model, variances, x)
    assert (fewer < every).all()


@pytest.mark.parametrize("budget", [1, 2**25])
def test_variance_in_pieces_is_the_same(budget, monkeypatch):
    monkeypatch.setattr("avalanche_hnet.core.fisher.output_variance._BUDGET", budget)
    model, x = lenet().eval(), torch.randn(5, 1, 16, 16)
    posterior = posterior_of(model)
    found = predict(model, posterior, x, likelihood=Gaussian())
    _, covariance, _ = moments(model, posterior, x)
    torch.testing.assert_close(found.epistemic_variance.flatten(), covariance.diagonal(), **CLOSE)


class SometimesTwice(nn.Module):
    """Calls a layer again where the first input is large."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.last = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        hidden = self.again(self.first(x).tanh()).tanh()
        if (x[:, 0] > 1).any():
            hidden = torch.where(x[:, :1] > 1, self.again(hidden).tanh(), hidden)
        return self.last(hidden)


def test_layers_that_a_later_batch_calls_twice_are_found():
    model = SometimesTwice()
    posterior = posterior_of(model)
    x = torch.randn(8, 6).clamp(max=0.9)
    x[5:, 0] = 2
    with pytest.warns(UserWarning, match="again.weight.* are computed one sample at a time"):
        found = predict(model, posterior, x, likelihood=Gaussian())
    _, covariance, _ = moments(model, posterior, x)
    torch.testing.assert_close(found.epistemic_variance.flatten(), covariance.diagonal(), **CLOSE)
