import pytest
import torch

from experiments.common.comparison.networks import GaussianNoise, mlp


def test_dropout_is_in_the_network_of_every_scenario():
    for heads in ("task", "domain", "growing", "fixed", "separate"):
        layers = [type(m) for m in mlp(heads, 4, (5, 6), 3, dropout=0.3).modules()]
        assert layers.count(torch.nn.Dropout) == 2
        assert torch.nn.Dropout not in [type(m) for m in mlp(heads, 4, (5, 6), 3).modules()]


@pytest.mark.parametrize("heads", ["task", "domain", "growing", "fixed", "separate"])
def test_noise_on_inputs_in_training_only(heads):
    (noise,) = (m for m in mlp(heads, 4, (5,), 3, input_noise=0.5).modules() if is_noise(m))
    x = torch.zeros(2000, 4)
    assert noise(x).std().item() == pytest.approx(0.5, rel=0.05)
    assert torch.equal(noise.eval()(x), x)
    assert not any(is_noise(m) for m in mlp(heads, 4, (5,), 3).modules())


def is_noise(module):
    return isinstance(module, GaussianNoise)
