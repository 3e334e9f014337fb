"""Inputs and output gradients of the layers of a model, from one forward and backward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from avalanche_hnet.core.fisher.one_task import OneTask


class Call(NamedTuple):
    """One call of a layer.

    Attributes:
        prefix: the layer's name in its model.
        layer: itself.
        inputs: its first argument.
        output_gradient: filled by the backward pass.
    """

    prefix: str
    layer: nn.Module
    inputs: Tensor
    output_gradient: list[Tensor]


@dataclass
class Recording:
    """Calls in order, and the leaves at which their common backward pass ends."""

    calls: list[Call] = field(default_factory=list)
    leaves: list[Tensor] = field(default_factory=list)

    def repeated(self) -> set[str]:
        """Layers that were called more than once."""
        times = Counter(call.prefix for call in self.calls)
        return {prefix for prefix, n in times.items() if n > 1}

    def output_gradients(self, outputs: Tensor, factor: Tensor) -> Iterator[tuple[Call, Tensor]]:
        """Calls that ``outputs`` depend on, with the gradients of Σ ``factor`` · ``outputs``."""
        if not self.leaves or not outputs.requires_grad:
            return
        torch.autograd.grad(outputs, self.leaves, factor, retain_graph=True, allow_unused=True)
        for call in self.calls:
            if call.output_gradient:
                yield call, call.output_gradient.pop()


def record(task: OneTask, x: Tensor, layers: Collection[str]) -> tuple[Tensor, Recording]:
    """Outputs (B, …), and the calls of some layers, given by name, that they are made of."""
    with _recorded(task.model, layers) as recording:
        outputs = task.outputs(x)
    return outputs, recording


@contextmanager
def _recorded(model: nn.Module, layers: Collection[str]) -> Iterator[Recording]:
    """Hooks on the layers; no parameter requires grad, so that no gradient of weights is formed."""
    recording = Recording()
    trainable = [p for p in model.parameters() if p.requires_grad]
    handles = [
        model.get_submodule(prefix).register_forward_hook(
            _hook(prefix, recording), with_kwargs=True
        )
        for prefix in layers
    ]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield recording
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for handle in handles:
            handle.remove()


def _hook(prefix: str, recording: Recording) -> Callable[..., Any]:
    def hook(layer: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if not isinstance(output, Tensor) or not torch.is_grad_enabled():
            return output
        if not output.requires_grad:  # nothing before it is differentiated: start here
            leaf = torch.zeros((), dtype=output.dtype, device=output.device)
            recording.leaves.append(leaf.requires_grad_())
            output = output + leaf
        inputs = (*args, *kwargs.values())[0]
        call = Call(prefix, layer, inputs.detach(), [])
        output.register_hook(call.output_gradient.append)
        recording.calls.append(call)
        return output

    return hook
