"""Initial values of a hypernetwork that give the main network weights of the right scale."""

from __future__ import annotations

import copy
from math import ceil, nan, prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_hnet.core.hypernetworks.output_layer import OutputLayer
from avalanche_hnet.core.hypernetworks.pairs import Concatenate
from avalanche_hnet.core.hypernetworks.weight_layout import WeightLayout

_NORMALISATION = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.modules.instancenorm._InstanceNorm,
)
_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)


def wanted_statistics(
    target: nn.Module, layout: WeightLayout, *, by_weight: bool
) -> tuple[Tensor, Tensor]:
    """Mean and variance (W,) that the weights of a main network should start with.

    Hyperfan-in for ReLU networks (Chang et al. 2020, *Principled Weight Initialization for
    Hypernetworks*, section 4): variance 2 / fan-in for the weights of linear and convolutional
    layers, halved where a bias is generated, which takes the other half: a variance of 1. Those of
    normalisations are 1 and their biases 0 without variance; every other parameter keeps the mean
    and variance of its values in ``target``.

    Where weights cannot be given variances of their own (not ``by_weight``, since the weights of
    several chunks share an output unit), those of linear and convolutional layers want all of the
    variance, and biases and normalisations have no wish: theirs is NaN.
    """
    owners = {
        f"{prefix}.{name}".lstrip("."): (module, name)
        for prefix, module in target.named_modules()
        for name, _ in module.named_parameters(recurse=False)
    }
    parameters = dict(target.named_parameters())
    means, variances = [], []
    for full_name, shape in layout.shapes.items():
        module, name = owners[full_name]
        values = parameters[full_name].detach()
        if isinstance(module, _NORMALISATION):
            mean, variance = float(name == "weight"), 0.0 if by_weight else nan
        elif isinstance(module, _WEIGHTED) and name == "weight":
            has_bias = full_name.removesuffix("weight") + "bias" in layout.shapes
            mean, variance = 0.0, 2 / _fan_in(module) / (2 if has_bias and by_weight else 1)
        elif isinstance(module, _WEIGHTED) and name == "bias":
            mean, variance = 0.0, 1.0 if by_weight else nan
        else:
            mean, variance = values.mean().item(), values.var(unbiased=False).item()
        means.append(torch.full((shape.numel(),), mean).to(values))
        variances.append(torch.full((shape.numel(),), variance).to(values))
    return torch.cat(means), torch.cat(variances)


def _fan_in(layer: nn.Module) -> float:
    """How many inputs a unit sums up; of a transposed convolution, on average."""
    assert isinstance(layer, _WEIGHTED)
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        n_inputs = len(layer.weight) // layer.groups
        return n_inputs * prod(layer.kernel_size) / prod(layer.stride)
    return layer.weight[0].numel()


def initialise(
    target: nn.Module,
    layout: WeightLayout,
    trunk: nn.Sequential,
    output: OutputLayer,
    input_variance: float,
) -> Tensor | None:
    """Set a hypernetwork to generate weights of the scale that the main network wants.

    Args:
        target: the main network.
        layout: of its weights.
        trunk: hidden layers of the hypernetwork.
        output: its output layer, with a unit for each weight of a chunk.
        input_variance: of the trunk's inputs.

    Returns:
        Means (W,), to be added to what is generated, if they are not all zero.
    """
    if not input_variance:
        raise ValueError("init='hyperfan' needs an embedding_std that is positive, got 0")
    n_chunks = ceil(layout.n_weights / output.out_features)
    mean, variance = wanted_statistics(target, layout, by_weight=n_chunks == 1)
    padding = n_chunks * output.out_features - len(variance)
    # A unit of the output layer generates one weight in each chunk: it suits most of them.
    by_chunk = F.pad(variance, (0, padding), value=nan).view(n_chunks, -1)
    suitable = by_chunk.nanmedian(0).values.nan_to_num()
    set_layers(trunk, output.weight, output.bias, input_variance, suitable)
    return mean if mean.any() else None


@torch.no_grad()
def set_layers(
    trunk: nn.Sequential, weight: Tensor, bias: Tensor, input_variance: float, variance: Tensor
) -> None:
    """Set hidden layers and output layer so that what is generated has ``variance``.

    Hidden layers get weights such that every pre-activation has variance 1, whatever the
    activation; unit i of the output layer then gets weights of variance

        variance_i / (r E[z²]),

    r the number of last hidden units and E[z²] their second moment. Biases are zero.

    Args:
        trunk: hidden linear layers, each followed by its activation.
        weight: of the output layer, from r last hidden units to C weights: (r, C).
        bias: of the output layer (C,).
        input_variance: of the trunk's inputs, which have mean zero.
        variance: (C,).
    """
    second_moment = input_variance
    for module in trunk:
        if isinstance(module, nn.Linear):
            _uniform(module.weight, torch.tensor(1 / (module.in_features * second_moment)))
            nn.init.zeros_(module.bias)
        elif not isinstance(module, (nn.Dropout, Concatenate)):
            second_moment = _second_moment(module)
    # Unit after unit, so that a seed gives each the same weights whatever the number of units.
    drawn = torch.empty_like(weight.T, memory_format=torch.contiguous_format)
    _uniform(drawn, variance[:, None] / (len(weight) * second_moment))
    weight.copy_(drawn.T)
    nn.init.zeros_(bias)


def _second_moment(activation: nn.Module) -> float:
    """E[activation(ξ)²] for ξ ~ N(0, 1), from quantiles."""
    probabilities = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    activation = copy.deepcopy(activation).double()
    return activation(torch.special.ndtri(probabilities)).square().mean().item()


def _uniform(tensor: Tensor, variance: Tensor) -> None:
    """Uniform around zero with ``variance``, which broadcasts to the tensor."""
    tensor.uniform_(-1, 1).mul_((3 * variance).sqrt().to(tensor))
