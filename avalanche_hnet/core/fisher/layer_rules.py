"""Squared per-sample gradients, summed over a batch, for one type of layer at a time.

A rule gets the layer, its input and the gradient with respect to its output (both with the
samples in dimension 0) and returns, for each of the layer's own parameters, the sum over
samples of the squared gradient of a sample. ``diagonal_fisher`` checks a rule against single
samples before it trusts it, so a rule need not think of layers that are called twice, tied
weights and the like.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_hnet.core.fisher.registry import registering, rule_of

FisherRule = Callable[[nn.Module, Tensor, Tensor], dict[str, Tensor]]

# Per-sample gradients are formed for at most so many numbers at a time (16 MiB of float32).
_BUDGET = 2**22
# From so many weights on, a sample's gradient is worth a kernel of its own.
_LARGE = 2**18

_rules: dict[type[nn.Module], FisherRule] = {}


def register_fisher_rule(
    *layer_types: type[nn.Module],
) -> Callable[[FisherRule], FisherRule]:
    """Decorator that makes a function the Fisher rule of layer types.

    Subclasses that do not override ``forward`` share it.
    The rule is called as ``rule(layer, inputs, output_gradients)`` and returns, by parameter
    name, new tensors of the parameters' shapes: Σ_n (∂ℓ_n/∂θ)² over the samples n in dimension 0.
    :func:`predict` differentiates it by the output gradients.

    Args:
        layer_types: classes of layers; a rule that they already have is replaced.

    Returns:
        The decorator, which registers the rule and returns it as it is.

    Raises:
        TypeError: if one of ``layer_types`` is no class of modules.
    """
    return registering(_rules, layer_types)


def fisher_rule(layer: nn.Module) -> FisherRule | None:
    """The rule of the layer's type, or of the base class whose ``forward`` it inherits."""
    return rule_of(_rules, layer)


def layers_with_rules(layers: Mapping[str, nn.Module]) -> dict[str, FisherRule]:
    """The rules of those layers that have parameters to differentiate by; both by name."""
    return {
        name: rule
        for name, module in layers.items()
        if any(p is not None and p.requires_grad for p in module._parameters.values())
        and getattr(module, "weight", True) is not None  # put in from outside, as in HyperModel
        and (rule := fisher_rule(module)) is not None
    }


@register_fisher_rule(nn.Linear)
def linear(layer: nn.Module, inputs: Tensor, grads: Tensor) -> dict[str, Tensor]:
    """Gradient g aᵀ of a sample; without a sequence its square is (g²)(a²)ᵀ."""
    if inputs.dim() == 2:
        squares = grads.square()
        return {"weight": squares.T @ inputs.square(), "bias": squares.sum(0)}
    sequences, grads = inputs.flatten(1, -2), grads.flatten(1, -2)
    return {
        "weight": squared_products(grads.transpose(1, 2), sequences),
        "bias": grads.sum(1).square().sum(0),
    }


@register_fisher_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution(layer: nn.Module, inputs: Tensor, grads: Tensor) -> dict[str, Tensor]:
    """Gradient of a sample: output gradients times the input patches under the kernel."""
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    padded = padded_for(layer, inputs)
    groups, n_patches = layer.groups, prod(grads.shape[2:])
    patch_size = prod(layer.kernel_size) * layer.in_channels // groups
    step = max(1, _BUDGET // (groups * patch_size * n_patches))
    weight = grads.new_zeros(groups, layer.out_channels // groups, patch_size)
    for x, g in zip(padded.split(step), grads.split(step), strict=True):
        patches = patches_of(x, layer).reshape(len(x), groups, patch_size, n_patches)
        g = g.reshape(len(g), groups, -1, n_patches)
        weight = weight + squared_products(g, patches.transpose(2, 3))
    weight = weight.view_as(layer.weight)
    return {"weight": weight, "bias": grads.flatten(2).sum(2).square().sum(0)}


@register_fisher_rule(nn.Embedding)
def embedding(layer: nn.Module, inputs: Tensor, grads: Tensor) -> dict[str, Tensor]:
    """Gradient of a sample and row: the sum of output gradients where the row was looked up."""
    assert isinstance(layer, nn.Embedding)
    rows, per_sample, counts = gradients_of_table(inputs, grads, layer.num_embeddings)
    if layer.scale_grad_by_freq:
        per_sample /= counts[:, None]
    weight = grads.new_zeros(layer.weight.shape)
    weight.index_add_(0, rows, per_sample.square_())
    if layer.padding_idx is not None:
        weight[layer.padding_idx] = 0
    return {"weight": weight}


def gradients_of_table(inputs: Tensor, grads: Tensor, n_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of samples by the rows of a table that they look up.

    Args:
        inputs: numbers of rows, (B, …).
        grads: gradients of the rows that were looked up, (B, …, E).
        n_rows: of the table.

    Returns:
        For each pair of a sample and one of its rows: the row's number, the sum of its gradients
        (E,), and how often the sample looks it up.
    """
    sample = torch.arange(len(inputs), device=inputs.device).view(-1, *[1] * (inputs.dim() - 1))
    pairs, position, counts = torch.unique(
        sample * n_rows + inputs, return_inverse=True, return_counts=True
    )
    per_sample = grads.new_zeros(len(pairs), grads.shape[-1])
    per_sample.index_add_(0, position.flatten(), grads.reshape(-1, grads.shape[-1]))
    return pairs % n_rows, per_sample, counts


@register_fisher_rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def batch_norm(layer: nn.Module, inputs: Tensor, grads: Tensor) -> dict[str, Tensor]:
    """In evaluation mode an affine map of each channel by the running statistics."""
    assert isinstance(layer, nn.modules.batchnorm._BatchNorm)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    mean, variance = layer.running_mean.to(inputs.dtype), layer.running_var.to(inputs.dtype)
    normalised = F.batch_norm(inputs, mean, variance, eps=layer.eps)
    return _channel_affine(normalised, grads)


@register_fisher_rule(nn.GroupNorm)
def group_norm(layer: nn.Module, inputs: Tensor, grads: Tensor) -> dict[str, Tensor]:
    """An affine map of each channel after normalisation within groups of channels."""
    assert isinstance(layer, nn.GroupNorm)
    return _channel_affine(F.group_norm(inputs, layer.num_groups, eps=layer.eps), grads)


@register_fisher_rule(nn.LayerNorm)
def layer_norm(layer: nn.Module, inputs: Tensor, grads: Tensor) -> dict[str, Tensor]:
    """An elementwise affine map of the last dimensions, shared by the positions before them."""
    assert isinstance(layer, nn.LayerNorm)
    normalised = F.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
    shape = (len(inputs), -1, *layer.normalized_shape)
    return {
        "weight": (grads * normalised).reshape(shape).sum(1).square().sum(0),
        "bias": grads.reshape(shape).sum(1).square().sum(0),
    }


def _channel_affine(normalised: Tensor, grads: Tensor) -> dict[str, Tensor]:
    shape = (*grads.shape[:2], -1)
    return {
        "weight": (grads * normalised).reshape(shape).sum(2).square().sum(0),
        "bias": grads.reshape(shape).sum(2).square().sum(0),
    }


def squared_products(left: Tensor, right: Tensor) -> Tensor:
    """Σ_n (left_n right_n)², for (N, …, O, S) and (N, …, S, I), in bounded memory."""
    shape = (*left.shape[1:-1], right.shape[-1])
    total = left.new_zeros(shape)
    tracked = torch.is_grad_enabled() and (left.requires_grad or right.requires_grad)
    if total.numel() >= _LARGE and not tracked:
        # One sample at a time in the same memory: half the traffic of all at once.
        product = torch.empty_like(total)
        for a, b in zip(left, right, strict=True):
            if len(shape) == 3 and shape[0] == 1:  # one matrix is faster than a batch of one
                torch.mm(a[0], b[0], out=product[0])
            else:
                torch.matmul(a, b, out=product)
            total.addcmul_(product, product)
        return total
    step = max(1, _BUDGET // total.numel())
    for a, b in zip(left.split(step), right.split(step), strict=True):
        total = total + (a @ b).square().sum(0)
    return total


def padded_for(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: Tensor) -> Tensor:
    """The inputs (B, C, …) with the layer's padding."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)


def patches_of(padded: Tensor, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Tensor:
    """Views of what the kernel sees: (B, C, kernel…, output…)."""
    spatial = len(layer.kernel_size)
    windows = padded
    for dim, (size, stride, dilation) in enumerate(
        zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), start=2
    ):
        windows = windows.unfold(dim, dilation * (size - 1) + 1, stride)[..., ::dilation]
    kernel = range(2 + spatial, 2 + 2 * spatial)
    return windows.permute(0, 1, *kernel, *range(2, 2 + spatial))
