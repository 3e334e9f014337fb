"""The Kronecker products of layers as a state that ``torch.load(weights_only=True)`` reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor

from avalanche_hnet.core.fisher.kronecker_layer import LayerLayout
from avalanche_hnet.core.posterior.layer_products import LayerProducts
from avalanche_hnet.core.posterior.low_rank import MaxRank
from avalanche_hnet.core.posterior.nearest_product import Product


def layer_state(layer: LayerProducts) -> dict[str, Any]:
    """The layout and the factors of all products of a layer."""
    return {
        "layout": asdict(layer.layout),
        "inputs": [inputs for inputs, _ in layer.products],
        "outputs": [outputs for _, outputs in layer.products],
    }


def layers_from_state(
    states: Any, mean: Mapping[str, Tensor], max_rank: MaxRank = None
) -> dict[str, LayerProducts]:
    """The layers of :func:`layer_state`, by name.

    Args:
        states: by name.
        mean: of the posterior, by parameter name.
        max_rank: of the layers, which their states do not have.

    Raises:
        ValueError: if a state is not that of a layer with these parameters.
    """
    if not isinstance(states, Mapping):
        raise ValueError(f"state['layers'] must be a dictionary, got {type(states).__name__}")
    return {
        name: _layer(f"state['layers'][{name!r}]", state, mean, max_rank)
        for name, state in states.items()
    }


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
        if state[name] != value:
            raise ValueError(
                f"state was made with {name}={state[name]!r}, but this posterior has {value!r}"
            )


def _layer(where: str, state: Any, mean: Mapping[str, Tensor], max_rank: MaxRank) -> LayerProducts:
    if not isinstance(state, Mapping) or state.keys() != {"layout", "inputs", "outputs"}:
        raise ValueError(f"{where} must be a dictionary with 'layout', 'inputs' and 'outputs'")
    expected = {field.name for field in fields(LayerLayout)}
    if not isinstance(state["layout"], Mapping) or state["layout"].keys() != expected:
        raise ValueError(f"{where}['layout'] must be a dictionary with the keys {sorted(expected)}")
    layout = LayerLayout(**state["layout"])
    if not mean.keys() >= {*layout.names}:
        raise ValueError(f"{where} is of {layout.names}, which state['mean'] does not have")
    weight = mean[layout.weight]
    n_groups, n_outputs, n_inputs = layout.sizes(weight)
    sides = (n_inputs,) if layout.is_table else (n_inputs, n_inputs)
    shapes = {"inputs": (n_groups, *sides), "outputs": (n_groups, n_outputs, n_outputs)}
    for field, shape in shapes.items():
        for tensor in state[field]:
            if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shape:
                raise ValueError(f"{where}[{field!r}] must have tensors of the shape {shape}")
    if not state["inputs"] or len(state["inputs"]) != len(state["outputs"]):
        raise ValueError(f"{where} must have as many 'inputs' as 'outputs', and at least one")
    pairs = zip(state["inputs"], state["outputs"], strict=True)
    products = tuple(Product(*map(torch.clone, pair)) for pair in pairs)
    return LayerProducts(layout, products, max_rank)
