"""What the gradient of a layer's weight is made of, for one type of layer at a time.

A rule gets the layer, its input and the gradient with respect to its output (both with the
samples in dimension 0) and returns rows a and g such that the gradient of a sample is the sum of
the products g aᵀ over its positions. ``kronecker_factors`` checks a rule against single samples
before it trusts it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from avalanche_hnet.core.fisher.layer_rules import padded_for, patches_of
from avalanche_hnet.core.fisher.registry import registering, rule_of

KroneckerRule = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]

_rules: dict[type[nn.Module], KroneckerRule] = {}


def register_kronecker_rule(
    *layer_types: type[nn.Module],
) -> Callable[[KroneckerRule], KroneckerRule]:
    """Decorator that makes a function the Kronecker rule of layer types.

    Subclasses that do not override ``forward`` share it. The layer has a ``weight`` (K·O, I…), K
    its attribute ``groups`` (1 if it has none), perhaps a ``bias`` (K·O,), and no other parameters
    of its own.

    The rule is called as ``rule(layer, inputs, output_gradients)``, samples in dimension 0, and
    returns ``(a, g)``, (K, B, R…, I…) and (K, B, R…, O): for each sample and each of the R
    positions at which the weight is used, what the weight is multiplied with and the gradient of
    the outcome. The gradient of sample n is Σ_r g_nr a_nrᵀ by the weight and Σ_r g_nr by the bias.
    Subclasses of :class:`torch.nn.Embedding` return row numbers, integers (1, B, R…), for a; a
    negative number looks up nothing.
    """
    return registering(_rules, layer_types)


def kronecker_rule(layer: nn.Module) -> KroneckerRule | None:
    """The rule of the layer's type, or of the base class whose ``forward`` it inherits."""
    return rule_of(_rules, layer)


@register_kronecker_rule(nn.Linear)
def linear(layer: nn.Module, inputs: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
    """Positions are all that is between the samples and the features."""
    return inputs[None], grads[None]


@register_kronecker_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution(layer: nn.Module, inputs: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
    """The input patches under the kernel, as a view, at the positions of the output."""
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    groups, n_spatial = layer.groups, len(layer.kernel_size)
    # (B, K, C/K, kernel…, output…)
    patches = patches_of(padded_for(layer, inputs), layer).unflatten(1, (groups, -1))
    kernel, output = range(3, 3 + n_spatial), range(3 + n_spatial, 3 + 2 * n_spatial)
    grads = grads.unflatten(1, (groups, -1))
    return (
        patches.permute(1, 0, *output, 2, *kernel),
        grads.permute(1, 0, *range(3, 3 + n_spatial), 2),
    )


@register_kronecker_rule(nn.Embedding)
def embedding(layer: nn.Module, inputs: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of the rows that are looked up."""
    assert isinstance(layer, nn.Embedding)
    if layer.scale_grad_by_freq:
        sample = torch.arange(len(inputs), device=inputs.device).view(-1, *[1] * (inputs.dim() - 1))
        _, position, counts = torch.unique(
            sample * layer.num_embeddings + inputs, return_inverse=True, return_counts=True
        )
        grads = grads / counts[position][..., None]
    if layer.padding_idx is not None:
        is_padding = inputs == layer.padding_idx
        inputs = inputs.masked_fill(is_padding, -1)
    return inputs[None], grads[None]
