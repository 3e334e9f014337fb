"""A main network without weights of its own."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
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
    """Remove the parameters of these names, wherever they are used.

    Their modules can then be called while there are others in their place, and not after.
    """
    tensors = {id(p) for n, p in network.named_parameters() if n in names}
    for module in network.modules():
        missing = [n for n, p in module._parameters.items() if id(p) in tensors]
        for name in missing:
            module._parameters[name] = None
        if missing:
            module.register_forward_pre_hook(partial(_require_weights, missing))
    release_weights(network, recurrent_layers(network))


def _require_weights(names: Collection[str], module: nn.Module, args: Any) -> None:
    if any(module._parameters.get(name) is None for name in names):
        raise RuntimeError(
            f"a {type(module).__name__} of the target was called again after its generated weights "
            "had been taken back, as torch.utils.checkpoint does in the backward pass; leave "
            "checkpoints out of the target of a HyperModel"
        )


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
