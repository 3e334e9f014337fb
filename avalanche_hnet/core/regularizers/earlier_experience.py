"""The penalty that one earlier experience leaves, in EWC without a posterior over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from avalanche_hnet.core.common.quadratic import Quadratic
from avalanche_hnet.core.common.state_entries import (
    check_keys,
    check_not_negative,
    check_tensors,
)
from avalanche_hnet.core.fisher.kronecker_layer import KroneckerFisher
from avalanche_hnet.core.posterior.kronecker_checks import check_factors
from avalanche_hnet.core.posterior.kronecker_state import layer_state, layers_from_state
from avalanche_hnet.core.posterior.kronecker_term import KroneckerTerm, LayerTerm
from avalanche_hnet.core.posterior.layer_products import LayerProducts, products_of
from avalanche_hnet.core.posterior.low_rank import MaxRank
from avalanche_hnet.core.posterior.protocol import Term

Fisher = Mapping[str, Tensor] | KroneckerFisher


@dataclass(frozen=True, eq=False)
class EarlierExperience:
    """½ N (θ − θ*)ᵀ F (θ − θ*) of an experience with N samples.

    Attributes:
        weights: N times the diagonal of F, by the names of parameters without a product.
        centres: θ* by name.
        layers: N A ⊗ G by the names of layers.
    """

    weights: Mapping[str, Tensor]
    centres: Mapping[str, Tensor]
    layers: Mapping[str, LayerProducts] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        fisher: Fisher,
        n_samples: int,
        parameters: Mapping[str, Tensor],
        max_rank: MaxRank = None,
    ) -> EarlierExperience:
        """What an experience leaves.

        Args:
            fisher: F, averaged over samples; what is missing is zero.
            n_samples: N.
            parameters: θ* by name.
            max_rank: of the factors in the penalty.
        """
        centres = {n: p.detach().clone() for n, p in parameters.items()}
        diagonal = fisher.diagonal if isinstance(fisher, KroneckerFisher) else fisher
        layers: dict[str, LayerProducts] = {}
        if isinstance(fisher, KroneckerFisher):
            check_factors(parameters, fisher)
            everything = {n: torch.ones_like(c, dtype=torch.bool) for n, c in centres.items()}
            for name, factor in fisher.layers.items():
                weight = centres[factor.layout.weight]
                products = products_of(factor, n_samples, everything, weight)
                assert products is not None  # since all elements are active
                layers[name] = replace(products, max_rank=max_rank)
        return cls({n: n_samples * f for n, f in diagonal.items()}, centres, layers)

    def term(self, device: torch.device) -> Term:
        """The penalty as a function of θ on a device."""
        weights, centres = (
            {n: t.to(device) for n, t in tensors.items()}
            for tensors in (self.weights, self.centres)
        )
        by_element = Quadratic(weights, centres)
        if not self.layers:
            return by_element
        fitted = [layer.fitted(centres) for layer in self.layers.values()]
        layers = [
            LayerTerm(layer, layer.layout.names, layer.layout.matrices(centres), 0.0, None, 1.0)
            for layer in fitted
            if layer is not None
        ]
        return KroneckerTerm(layers, by_element)

    def state_dict(self) -> dict[str, Any]:
        """Everything there is to know, for ``torch.save``."""
        state: dict[str, Any] = {"weights": dict(self.weights), "centres": dict(self.centres)}
        if self.layers:
            state["layers"] = {name: layer_state(layer) for name, layer in self.layers.items()}
        return state

    @classmethod
    def from_state(
        cls, state: Mapping[str, Any], where: str = "state", max_rank: MaxRank = None
    ) -> EarlierExperience:
        """The reverse of :meth:`state_dict`, as a copy.

        Args:
            state: see there.
            where: what it is called in errors.
            max_rank: see :meth:`of`; the state does not have it.

        Raises:
            ValueError: naming the entry that is not what it should be.
        """
        check_keys(where, state, ["weights", "centres", "layers"], optional=["layers"])
        centres = check_tensors(f"{where}['centres']", state["centres"])
        weights = check_tensors(f"{where}['weights']", state["weights"])
        for name, tensor in weights.items():
            if name not in centres or centres[name].shape != tensor.shape:
                raise ValueError(
                    f"{where}['weights'][{name!r}] must have its equal in {where}['centres'], of "
                    f"the shape {tuple(tensor.shape)}"
                )
            check_not_negative(f"{where}['weights'][{name!r}]", tensor)
        of_layers = state.get("layers", {})
        layers = layers_from_state(of_layers, centres, max_rank, parent=f"{where}['layers']")
        return cls(_copies(weights), _copies(centres), layers)


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def experiences_from_state(states: Any, max_rank: MaxRank = None) -> list[EarlierExperience]:
    """Earlier experiences from a list of their states, whose layers get this ``max_rank``.

    Raises:
        ValueError: naming the entry that is not what it should be.
    """
    if not isinstance(states, list | tuple):
        raise ValueError(f"state['experiences'] must be a list, got {type(states).__name__}")
    return [
        EarlierExperience.from_state(each, f"state['experiences'][{number}]", max_rank)
        for number, each in enumerate(states)
    ]
