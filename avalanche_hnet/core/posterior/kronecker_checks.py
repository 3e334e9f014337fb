"""What a Kronecker-factored posterior refuses in an update."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from avalanche_hnet.core.fisher.kronecker_layer import KroneckerFactor, KroneckerFisher


def check_factors(parameters: Mapping[str, Tensor], fisher: KroneckerFisher) -> None:
    """Refuse factors that do not fit the parameters.

    Raises:
        TypeError: if ``fisher`` is something else.
        ValueError: for a layer of other parameters or shapes, or factors with negative diagonals or
            numbers that are not finite.
    """
    if not isinstance(fisher, KroneckerFisher):
        raise TypeError(
            f"fisher must be a KroneckerFisher, as kronecker_factors makes it, got {fisher!r}"
        )
    for name, factor in fisher.layers.items():
        _check_shapes(name, factor, parameters)
        for field, matrices in (("inputs", factor.inputs), ("outputs", factor.outputs)):
            diagonal = matrices if matrices.dim() == 2 else matrices.diagonal(dim1=1, dim2=2)
            if not (torch.isfinite(matrices).all() and (diagonal >= 0).all()):
                raise ValueError(
                    f"fisher.layers[{name!r}].{field} must be finite and positive semidefinite; "
                    "the posterior is left as it was"
                )


def _check_shapes(name: str, factor: KroneckerFactor, parameters: Mapping[str, Tensor]) -> None:
    layout = factor.layout
    missing = [n for n in layout.names if n not in parameters]
    if missing:
        raise ValueError(
            f"fisher.layers[{name!r}] is of {missing[0]!r}, which is no parameter of this model"
        )
    weight = parameters[layout.weight]
    n_groups, n_outputs, n_inputs = layout.sizes(weight)
    sides = (n_inputs,) if layout.is_table else (n_inputs, n_inputs)
    expected = (n_groups, *sides), (n_groups, n_outputs, n_outputs)
    got = tuple(factor.inputs.shape), tuple(factor.outputs.shape)
    if got != expected or not (layout.is_table or weight.shape[1:] == layout.row_shape):
        raise ValueError(
            f"fisher.layers[{name!r}] has factors of shapes {got}, but its weight of shape "
            f"{tuple(weight.shape)} asks for {expected}"
        )
