"""Inputs and output gradients of the layers of a model, from one forward and backward pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from avalanche_hnet.core.common.samples import Samples
from avalanche_hnet.core.fisher.one_task import OneTask


class Call(NamedTuple):
    """One call of a layer.

    Attributes:
        prefix: the layer's name in its model.
        layer: itself.
        names: of its own parameters in the model, by their names in the layer.
        inputs: its first argument.
        output: where its output stands in the graph, whatever is done to it in place.
        shape: of its output, (B, …) if samples are in dimension 0.
        dtype: of its output.
    """

    prefix: str
    layer: nn.Module
    names: Mapping[str, str]
    inputs: Tensor
    output: GradientEdge
    shape: torch.Size
    dtype: torch.dtype


@dataclass
class Recording:
    """Calls of layers, in order."""

    calls: list[Call] = field(default_factory=list)

    def dtypes(self) -> set[torch.dtype]:
        """Of what goes into the layers and what comes out of them."""
        return {dtype for call in self.calls for dtype in (call.inputs.dtype, call.dtype)}

    def output_gradients(
        self, outputs: Tensor, factor: Tensor, prefixes: Collection[str] | None = None
    ) -> Iterator[tuple[Call, Tensor]]:
        """Calls that ``outputs`` depend on, with the gradients of Σ ``factor`` · ``outputs``.

        Only the calls of some layers, if ``prefixes`` names them.
        """
        calls = [c for c in self.calls if prefixes is None or c.prefix in prefixes]
        if not calls or not outputs.requires_grad:
            return
        gradients = torch.autograd.grad(
            outputs, [c.output for c in calls], factor, retain_graph=True, allow_unused=True
        )
        for call, gradient in zip(calls, gradients, strict=True):
            if gradient is not None:
                shape = call.shape
                yield call, gradient if gradient.shape == shape else gradient.reshape(shape)


def record(task: OneTask, x: Tensor | Samples, layers: Collection[str]) -> tuple[Tensor, Recording]:
    """Outputs (B, …), and the calls of some layers, given by name, that they are made of."""
    with _recorded(task, layers) as recording:
        outputs = task.outputs(x)
    return outputs, recording


@contextmanager
def _recorded(task: OneTask, layers: Collection[str]) -> Iterator[Recording]:
    recording = Recording()
    with ExitStack() as stack:
        for prefix in layers:
            hook = _hook(prefix, task.names[prefix], recording)
            # In one line: a hook that an interrupt left behind would slow the model down for good.
            stack.callback(task.layers[prefix].register_forward_hook(hook, with_kwargs=True).remove)
        yield recording


def _hook(prefix: str, names: Mapping[str, str], recording: Recording) -> Callable[..., None]:
    def hook(layer: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if not isinstance(output, Tensor) or not output.requires_grad:
            return
        inputs = args[0] if args else next(iter(kwargs.values()))
        edge = get_gradient_edge(_base(output))
        recording.calls.append(
            Call(prefix, layer, names, inputs.detach(), edge, output.shape, output.dtype)
        )

    return hook


def _base(output: Tensor) -> Tensor:
    """What the output is another shape of: a view leaves the graph when it is changed in place."""
    base = output._base
    if base is None or not base.requires_grad or base.numel() != output.numel():
        return output
    is_reshaped = base.is_contiguous() and output.is_contiguous()
    return base if is_reshaped and base.grad_fn is not None else output
