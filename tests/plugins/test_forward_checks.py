"""The Fisher is of what the strategy trains, or the strategy is refused before it trains."""

import pytest
import torch
from avalanche.training import Naive
from torch import nn

from avalanche_hnet import PriorEWCPlugin
from tests.support.models import mlp
from tests.support.strategies import naive
from tests.support.streams import labelled_benchmark


class Masked(nn.Module):
    """As many models of text: the mask is an argument, which may be left out."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(mlp(n_out=2), nn.Dropout())

    def forward(self, x, mask=None):
        return self.net(x if mask is None else x * mask)


class Needy(Masked):
    def forward(self, x, mask):
        return super().forward(x, mask)


class WithMask(Naive):
    def forward(self):
        return self.model(self.mb_x, mask=(self.mb_x > 0).float())


class WithoutMask(Naive):
    def forward(self):
        return self.model(self.mb_x, mask=None)


class WithAutocast(Naive):
    def forward(self):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward()


def experience():
    data = [(torch.randn(8, 6), torch.arange(8) % 2)]
    return labelled_benchmark(data).train_stream[0]


@pytest.mark.parametrize(
    ("model", "message"),
    [(Masked, "gives other outputs than model"), (Needy, "in another way than model")],
)
def test_a_forward_that_gives_the_model_more_is_refused(model, message):
    model = model()
    before = [p.detach().clone() for p in model.parameters()]
    strategy = naive(model, PriorEWCPlugin(), strategy=WithMask)
    with pytest.raises(ValueError, match=message):
        strategy.train(experience())
    assert model.training
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("strategy", [WithoutMask, WithAutocast])
def test_a_forward_of_its_own_that_does_the_same_trains(strategy):
    plugin = PriorEWCPlugin()
    naive(Masked(), plugin, strategy=strategy).train(experience())
    assert plugin.posterior.mean
