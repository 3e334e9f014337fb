"""A main network without weights of its own."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from avalanche.models import DynamicModule
from torch import nn

from avalanche_hnet.core.hypernetworks.network import HyperNetwork


def require_fit(target: nn.Module, hypernetwork: HyperNetwork) -> None:
    """Refuse a hypernetwork for another target, and a target that grows."""
    if not isinstance(hypernetwork, HyperNetwork):
        raise TypeError(f"hypernetwork must be a HyperNetwork, got {hypernetwork!r}")
    shapes = {n: p.shape for n, p in target.named_parameters() if p.requires_grad}
    for name, shape in hypernetwork.layout.shapes.items():
        if shapes.get(name) != shape:
            raise ValueError(
                f"hypernetwork generates {name!r} of shape {tuple(shape)}, but the target has "
                f"{'none' if name not in shapes else tuple(shapes[name])}; make the hypernetwork "
                "for this target"
            )
    for name, module in target.named_modules():
        if isinstance(module, DynamicModule):
            raise ValueError(
                f"target has a {type(module).__name__} ({name or 'itself'}), which grows with the "
                "experiences; the weights that a hypernetwork generates are of fixed number. Use "
                "a fixed output layer, with multi_head=True where the tasks are to share it"
            )


def aliases_of(target: nn.Module) -> dict[str, str]:
    """All names of parameters, tied ones included, and the first name of each."""
    first = {id(p): n for n, p in target.named_parameters()}
    return {n: first[id(p)] for n, p in target.named_parameters(remove_duplicate=False)}


def strip(network: nn.Module, names: Collection[str]) -> None:
    """Remove the parameters of these names, wherever they are used."""
    tensors = {id(p) for n, p in network.named_parameters() if n in names}
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if id(parameter) in tensors:
                module._parameters[name] = None
    release_weights(network, recurrent_layers(network))


def recurrent_layers(network: nn.Module) -> list[str]:
    """Names of the layers that keep references to their weights."""
    return [n for n, module in network.named_modules() if isinstance(module, nn.RNNBase)]


def renew_weights(network: nn.Module, recurrent: list[str]) -> None:
    """Make recurrent layers look for their weights anew, which they keep otherwise."""
    for name in recurrent:
        layer: Any = network.get_submodule(name)
        layer._flat_weight_refs = [_nothing] * len(layer._flat_weights_names)


def _nothing() -> None:
    """In place of a weak reference to a weight."""


def release_weights(network: nn.Module, recurrent: list[str]) -> None:
    """Make recurrent layers let go of the weights that they were last called with."""
    for name in recurrent:
        layer: Any = network.get_submodule(name)
        layer._flat_weights = [None] * len(layer._flat_weights_names)
