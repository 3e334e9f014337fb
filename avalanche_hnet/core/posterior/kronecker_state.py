"""The Kronecker products of layers as a state that ``torch.load(weights_only=True)`` reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor

from avalanche_hnet.core.common.state_entries import check_not_negative, check_tensor
from avalanche_hnet.core.fisher.kronecker_layer import LayerLayout
from avalanche_hnet.core.posterior.layer_products import LayerProducts
from avalanche_hnet.core.posterior.low_rank import MaxRank
from avalanche_hnet.core.posterior.nearest_product import Product

# Relative to the largest element of a diagonal; what was computed in 16 bits is not refused.
_ROUNDING = 1e-2


def layer_state(layer: LayerProducts) -> dict[str, Any]:
    """The layout and the factors of all products of a layer."""
    return {
        "layout": asdict(layer.layout),
        "inputs": [inputs for inputs, _ in layer.products],
        "outputs": [outputs for _, outputs in layer.products],
    }


def layers_from_state(
    states: Any,
    mean: Mapping[str, Tensor],
    max_rank: MaxRank = None,
    parent: str = "state['layers']",
) -> dict[str, LayerProducts]:
    """The layers of :func:`layer_state`, by name.

    Args:
        states: by name.
        mean: of the posterior, by parameter name.
        max_rank: of the layers, which their states do not have.
        parent: what ``states`` is called in errors.

    Raises:
        ValueError: if a state is not that of a layer with these parameters.
    """
    if not isinstance(states, Mapping):
        raise ValueError(f"{parent} must be a dictionary, got {type(states).__name__}")
    layers: dict[str, LayerProducts] = {}
    names: set[str] = set()
    for name, state in states.items():
        where = f"{parent}[{name!r}]"
        if not isinstance(name, str):
            raise ValueError(f"{parent} must have names as keys, got {name!r}")
        layers[name] = _layer(where, state, mean, max_rank)
        if not names.isdisjoint(layers[name].layout.names):
            raise ValueError(f"{where} is of {layers[name].layout.names}, as another layer is")
        names.update(layers[name].layout.names)
    return layers


def check_own_state(state: Any, current: Mapping[str, Any]) -> None:
    """Refuse what is not the state of a posterior with the same settings.

    Args:
        state: to be loaded.
        current: the settings, by name.

    Raises:
        ValueError: naming the setting, or what is missing.
    """
    keys = state.keys() if isinstance(state, Mapping) else set()
    missing = {*current, "layers"} - keys
    if missing:
        is_diagonal = "precision" in keys and "layers" not in keys
        made_by = ": it is of structure='diagonal', a GaussianPosterior" if is_diagonal else ""
        raise ValueError(
            f"state must be that of a KroneckerPosterior, but has no {sorted(missing)}{made_by}"
        )
    for name, value in current.items():
        if isinstance(state[name], Tensor) or state[name] != value:
            raise ValueError(
                f"state was made with {name}={state[name]!r}, but this posterior has {value!r}"
            )


def _layer(where: str, state: Any, mean: Mapping[str, Tensor], max_rank: MaxRank) -> LayerProducts:
    if not isinstance(state, Mapping) or state.keys() != {"layout", "inputs", "outputs"}:
        raise ValueError(f"{where} must be a dictionary with 'layout', 'inputs' and 'outputs'")
    layout = _layout(f"{where}['layout']", state["layout"], mean)
    n_groups, n_outputs, n_inputs = layout.sizes(mean[layout.weight])
    sides = (n_inputs,) if layout.is_table else (n_inputs, n_inputs)
    shapes = {"inputs": (n_groups, *sides), "outputs": (n_groups, n_outputs, n_outputs)}
    for field, shape in shapes.items():
        if not isinstance(state[field], list | tuple):
            raise ValueError(f"{where}[{field!r}] must be a list of tensors of the shape {shape}")
        for number, matrices in enumerate(state[field]):
            check_tensor(f"{where}[{field!r}][{number}]", matrices, shape)
            _check_semidefinite(f"{where}[{field!r}][{number}]", matrices)
    if not state["inputs"] or len(state["inputs"]) != len(state["outputs"]):
        raise ValueError(f"{where} must have as many 'inputs' as 'outputs', and at least one")
    pairs = zip(state["inputs"], state["outputs"], strict=True)
    products = tuple(Product(a.detach().clone(), g.detach().clone()) for a, g in pairs)
    return LayerProducts(layout, products, max_rank)


def _layout(where: str, state: Any, mean: Mapping[str, Tensor]) -> LayerLayout:
    expected = {field.name for field in fields(LayerLayout)}
    if not isinstance(state, Mapping) or state.keys() != expected:
        raise ValueError(f"{where} must be a dictionary with the keys {sorted(expected)}")
    names = [state["weight"], *([] if state["bias"] is None else [state["bias"]])]
    for name in names:
        if not isinstance(name, str) or name not in mean:
            raise ValueError(f"{where} is of {name!r}, which state['mean'] does not have")
    groups, is_table, row_shape = (state[field] for field in ("groups", "is_table", "row_shape"))
    weight = mean[state["weight"]]
    if not isinstance(is_table, bool) or weight.dim() < 2 or (is_table and weight.dim() != 2):
        raise ValueError(f"{where}['is_table'] does not fit {state['weight']!r}, got {is_table!r}")
    if not _is_integer(groups) or groups < 1 or len(weight) % groups or (is_table and groups > 1):
        raise ValueError(
            f"{where}['groups'] must divide the {len(weight)} rows of {state['weight']!r}, got "
            f"{groups!r}"
        )
    is_shape = isinstance(row_shape, list | tuple) and all(map(_is_integer, row_shape))
    if not is_shape or tuple(row_shape) != tuple(weight.shape[1:]):
        raise ValueError(
            f"{where}['row_shape'] must be {tuple(weight.shape[1:])}, got {row_shape!r}"
        )
    if state["bias"] is not None and (is_table or mean[state["bias"]].shape != weight.shape[:1]):
        raise ValueError(f"{where}['bias'] must be one element for each row of the weight")
    return LayerLayout(state["weight"], state["bias"], groups, is_table, tuple(row_shape))


def _check_semidefinite(where: str, matrices: Tensor) -> None:
    """Refuse what is not symmetric and positive semidefinite, to the rounding of 16-bit numbers.

    Raises:
        ValueError: saying which of it.
    """
    if not matrices.numel():
        return
    diagonal = matrices if matrices.dim() == 2 else matrices.diagonal(dim1=1, dim2=2)
    check_not_negative(f"the diagonal of {where}", diagonal)
    if matrices.dim() == 2:
        return
    matrices = matrices.to(torch.promote_types(matrices.dtype, torch.float32))
    diagonal = matrices.diagonal(dim1=1, dim2=2)
    scale = diagonal.amax(1)[:, None, None]
    if ((matrices - matrices.mT).abs() > _ROUNDING * scale).any():
        raise ValueError(f"{where} must be symmetric")
    # A positive definite matrix has a Cholesky factor; this is cheaper than eigenvalues.
    shift = torch.where(scale > 0, _ROUNDING * scale, 1) * torch.eye(matrices.shape[-1]).to(scale)
    too_large = matrices.abs() > scale * (1 + _ROUNDING)
    if too_large.any() or torch.linalg.cholesky_ex(matrices + shift).info.any():
        raise ValueError(f"{where} must be positive semidefinite")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
