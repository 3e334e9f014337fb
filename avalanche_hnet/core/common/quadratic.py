"""A weighted sum of squares over many tensors, with a cheap gradient."""

from __future__ import annotations

from collections.abc import Container, Mapping

import torch
from torch import Tensor

from avalanche_hnet.core.common.cache_parts import cache_parts
from avalanche_hnet.core.common.value_with_gradient import value_with_gradient

Tensors = tuple[Tensor, ...] | list[Tensor]


class Quadratic:
    """½ Σ_i w_i (φ_i − c_i)² as a function of parameters φ.

    Args:
        weights: w ≥ 0 by parameter name; parameters without weights do not take part.
        centres: c by parameter name.
    """

    def __init__(self, weights: Mapping[str, Tensor], centres: Mapping[str, Tensor]) -> None:
        self._terms = {name: (weight, centres[name]) for name, weight in weights.items()}

    @property
    def names(self) -> list[str]:
        """Of the parameters that take part."""
        return [*self._terms]

    def term(self, name: str) -> tuple[Tensor, Tensor]:
        """The weights and the centres of a parameter."""
        return self._terms[name]

    def without(self, skip: Container[str]) -> Quadratic:
        """The same without the parameters of these names."""
        chosen = {name: term for name, term in self._terms.items() if name not in skip}
        weights, centres = ({n: term[i] for n, term in chosen.items()} for i in (0, 1))
        return Quadratic(weights, centres)

    def __call__(self, parameters: Mapping[str, Tensor], skip: Container[str] = ()) -> Tensor:
        """The value at ``parameters``, a scalar that can be differentiated once.

        Parameters may be of another type than weights and centres: the value has the wider of
        the two, gradients have that of their parameter.

        Args:
            parameters: φ by name, of which all that have weights are needed.
            skip: names that are left out of the sum.
        """
        chosen = self.without(skip)
        if not chosen.names:
            return torch.zeros(())
        tensors = [parameters[name] for name in chosen.names]
        if not torch.is_grad_enabled() and tensors[0].is_cpu:
            return _value_alone(*chosen._weights_and_centres(), tensors)
        return value_with_gradient(chosen.value_and_gradients, tensors)

    def value_and_gradients(self, parameters: Tensors) -> tuple[Tensor, list[Tensor]]:
        """The value and new tensors with its gradients, by the parameters in order of ``names``."""
        if not self._terms:
            return torch.zeros(()), []
        weights, centres = self._weights_and_centres()
        deviations = torch._foreach_sub(parameters, centres)
        gradients = list(torch._foreach_mul(deviations, weights))
        return _dot_products(gradients, deviations).sum() / 2, gradients

    def _weights_and_centres(self) -> tuple[Tensors, Tensors]:
        weights, centres = zip(*self._terms.values(), strict=True)
        return weights, centres


def _value_alone(weights: Tensors, centres: Tensors, parameters: Tensors) -> Tensor:
    """Part by part, so that deviations need no memory but the cache."""
    products = []
    for term in zip(weights, centres, parameters, strict=True):
        for weight, centre, parameter in cache_parts(term):
            deviation = parameter - centre
            products.append((deviation * weight).flatten().dot(deviation.flatten()))
    return torch.stack(products).sum() / 2


def _dot_products(gradients: Tensors, deviations: Tensors) -> Tensor:
    """Σ w d² of each tensor; d is overwritten."""
    if gradients[0].is_cpu:  # one pass less over the numbers
        pairs = zip(gradients, deviations, strict=True)
        return torch.stack([g.flatten().dot(d.flatten()) for g, d in pairs])
    torch._foreach_mul_(deviations, gradients)  # as few kernels as possible
    return torch.stack(torch._foreach_norm(deviations, 1))
