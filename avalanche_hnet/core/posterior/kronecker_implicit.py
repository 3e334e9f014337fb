"""The step of a Kronecker-factored penalty that does not diverge."""

from __future__ import annotations

from collections.abc import Container, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from avalanche_hnet.core.posterior.implicit import implicit_step
from avalanche_hnet.core.posterior.kronecker_term import KroneckerTerm, LayerTerm
from avalanche_hnet.core.posterior.step_sizes import shared_rate


def names_of_exact_steps(
    optimizer: Optimizer, parameters: Mapping[str, Tensor], penalty: KroneckerTerm
) -> frozenset[str]:
    """Names of the parameters whose layers :func:`kronecker_implicit_step` can move.

    The optimizer's next step has one size for all elements (SGD, RAdam's first steps), the same for
    weight and bias, both of which it moves; the layer has one product and no precisions by element;
    and what is known of it are some of its units by some of its inputs, as with whole rows. Other
    layers feel their penalty in the gradient.
    """
    rates = _rates(optimizer, parameters, n_more=1)
    return frozenset(
        name for layer in penalty.layers if _has_exact_step(layer, rates) for name in layer.names
    )


@torch.no_grad()
def kronecker_implicit_step(
    optimizer: Optimizer,
    parameters: Mapping[str, Tensor],
    penalty: KroneckerTerm,
    skip: Container[str] = (),
) -> None:
    """D ← (1 + η s (A ⊗ G + 1/σ²))⁻¹ D for each layer, D = W − W*, after the optimizer's own step.

    The proximal step of the layer's penalty for a step size η, as :func:`implicit_step`, which the
    parameters of no layer take. In the eigenbasis of A ⊗ G, which is computed once, it is a
    division; into it and back are four products of matrices, also where the penalty multiplies
    with cheaper A and G (``max_rank``), whose step it then is. What is not known is left alone.

    Args:
        optimizer: has made its step; :func:`~.step_sizes.is_known`.
        parameters: φ by name, changed in place.
        penalty: of the earlier experiences.
        skip: names of parameters that are left alone.

    Raises:
        ValueError: for a layer of which one parameter is in ``skip`` and another is not, or that is
            none of :func:`names_of_exact_steps`. Nothing is changed then.
    """
    rates = _rates(optimizer, parameters)
    layers = [layer for layer in penalty.layers if not all(n in skip for n in layer.names)]
    for layer in layers:
        if any(n in skip for n in layer.names) or not _has_exact_step(layer, rates):
            raise ValueError(
                f"the parameters {layer.names} have no implicit step together with "
                f"{type(optimizer).__name__}; skip both and use the gradient of their penalty"
            )
    for layer in layers:
        _move(layer, parameters, rates[layer.names[0]])
    implicit_step(optimizer, parameters, penalty.rest, skip)


def _move(term: LayerTerm, parameters: Mapping[str, Tensor], rate: float) -> None:
    basis, layout = term.layer.penalty_basis, term.layer.layout
    deviation = term.deviation(parameters)
    pull = (basis.values() + term.precision).mul_(rate * term.factor)
    # The change rather than D itself: it is exactly zero at the centre.
    share = pull.reciprocal_().add_(1).reciprocal_()  # pull / (1 + pull), whatever its size
    change = basis.out_of(basis.into(deviation).mul_(share))
    if term.known is not None:
        change = change.where(term.known, 0)
    for name, part in layout.tensors(change).items():
        if name in term.names:
            parameters[name].sub_(part)


def _rates(
    optimizer: Optimizer, parameters: Mapping[str, Tensor], n_more: int = 0
) -> dict[str, float]:
    """The step sizes of parameters that have one for all their elements, by name."""
    names = {parameter: name for name, parameter in parameters.items() if parameter.requires_grad}
    rates = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter in names:
                rate = shared_rate(optimizer, group, parameter, n_more)
                if rate is not None:
                    rates[names[parameter]] = rate
    return rates


def _has_exact_step(term: LayerTerm, rates: Mapping[str, float]) -> bool:
    own = {rates.get(name) for name in term.names}
    return len(own) == 1 and None not in own and term.is_diagonal_in_eigenbasis
