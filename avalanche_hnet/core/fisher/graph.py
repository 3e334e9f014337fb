"""What the autograd graph of a batch says about its layers."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

# Operations that take their elements or rows along, wherever the numbers lead: which element of
# the result comes from which sample follows from the shapes and the saved dimensions alone.
_ELEMENTWISE = (
    "Add", "Sub", "Mul", "Div", "Neg", "Pow", "Exp", "Expm1", "Log", "Log1P", "Sqrt", "Rsqrt",
    "Abs", "Clamp", "ClampMin", "ClampMax", "Where", "MaskedFill", "Maximum", "Minimum",
    "Reciprocal", "Sin", "Cos", "Erf", "Sign", "Relu", "LeakyRelu", "Elu", "Gelu", "Silu",
    "Mish", "Celu", "Selu", "Hardtanh", "Hardswish", "Hardsigmoid", "Softplus", "Softshrink",
    "Prelu", "Sigmoid", "LogSigmoid", "Tanh", "Atan", "ToCopy", "Clone", "Copy", "Alias",
    "Detach", "NativeDropout", "Threshold", "Lerp", "Addcmul", "Addcdiv", "Rsub",
)  # fmt: skip
_OF_SHAPES = (
    "View", "UnsafeView", "ReshapeAlias", "Expand", "Squeeze", "T", "Repeat", "Convolution",
    "ConvolutionOverrideable", "MkldnnConvolution", "NativeBatchNorm", "CudnnBatchNorm",
    "NativeLayerNorm", "NativeGroupNorm", "FusedRmsNorm", "MaxPool2DWithIndices",
    "MaxPool3DWithIndices", "AvgPool2D", "AvgPool3D", "AdaptiveAvgPool2D",
    "AdaptiveAvgPool3D", "MkldnnAdaptiveAvgPool2D", "ConstantPadNd", "ReflectionPad1D",
    "ReflectionPad2D", "ReplicationPad1D", "ReplicationPad2D", "UpsampleNearest1D",
    "UpsampleNearest2D", "UpsampleBilinear2D", "Embedding", "Bmm", "Addmm", "Mm", "Baddbmm",
    "LinearalgVectorNorm", "ScaledDotProductFlashAttentionForCpu",
    "ScaledDotProductFlashAttention", "ScaledDotProductEfficientAttention",
    "ScaledDotProductCudnnAttention",
)  # fmt: skip
_OF_DIMENSIONS = {
    "Mean": "_saved_dim",
    "Sum": "_saved_dim",
    "Softmax": "_saved_dim",
    "LogSoftmax": "_saved_dim",
    "Amax": "_saved_dim",
    "Amin": "_saved_dim",
    "Max": "_saved_dim",
    "Logsumexp": "_saved_dim",
    "Var": "_saved_dim",
    "LinalgVectorNorm": "_saved_dim",
    "Cumsum": "_saved_dim",
    "Cat": "_saved_dim",
    "Stack": "_saved_dim",
    "Unsqueeze": "_saved_dim",
    "Permute": "_saved_dims",
    "Unfold": "_saved_dimension",
    "Transpose": "_saved_dim1",
    "Select": "_saved_dim",
    "Slice": "_saved_dim",
    "Split": "_saved_dim",
    "SplitWithSizes": "_saved_dim",
    "Unbind": "_saved_dim",
}
# Along dimension 0, which samples these pick may depend on anything.
_PICKS = {"Select", "Slice", "Split", "SplitWithSizes", "Unbind", "Cat", "Stack"}
_ACCUMULATE = "torch::autograd::AccumulateGrad"
_KNOWN = {*_ELEMENTWISE, *_OF_SHAPES, *_OF_DIMENSIONS}


@dataclass(frozen=True)
class Graph:
    """The graph behind the outputs of a batch.

    Attributes:
        signature: equal for two batches whose samples take the same way through the model, if
            it is fixed.
        is_fixed: whether the way that samples take cannot depend on their values.
        is_opaque: whether it hides parameters (reentrant checkpoints).
        nodes: all of them.
        once: names of parameters that are used in one place.
        several: names of parameters that are used in several.
    """

    signature: Hashable
    is_fixed: bool
    is_opaque: bool
    nodes: frozenset[Node]
    once: frozenset[str]
    several: frozenset[str]


def graph_of(
    outputs: Tensor, parameters: Mapping[str, nn.Parameter], ends: Collection[Node]
) -> Graph:
    """The graph of ``outputs``; a parameter's use goes no further than a node of ``ends``."""
    if outputs.grad_fn is None:
        return Graph((), True, False, frozenset(), frozenset(), frozenset())
    uses: dict[Node, int] = {outputs.grad_fn: 0}
    user: dict[Node, Node] = {}
    waiting = [outputs.grad_fn]
    description: list[Hashable] = []
    leaves: dict[int, Node] = {}
    is_fixed, is_opaque = True, False
    while waiting:
        node = waiting.pop()
        name = node.name()
        if name == _ACCUMULATE:
            variable: Any = getattr(node, "variable", None)
            leaves[id(variable)] = node
            continue
        children = node.next_functions
        if _needs_no_look(name):
            description.append(name)
        else:
            key, dimensions = _described(node, name)
            description.append((name, dimensions))
            is_fixed = is_fixed and _has_a_fixed_way(key, dimensions, children)
            is_opaque = is_opaque or key.startswith("CheckpointFunction")
        for child, _ in children:
            if child in uses:
                uses[child] += 1
            elif child is not None:
                uses[child] = 1
                waiting.append(child)
            else:
                continue
            user[child] = node
    once: set[str] = set()
    several: set[str] = set()
    for name, parameter in parameters.items():
        leaf = leaves.get(id(parameter))
        if leaf is not None:
            (once if _is_used_once(leaf, uses, user, ends) else several).add(name)
    return Graph(
        tuple(description),
        is_fixed,
        is_opaque,
        frozenset(uses),
        frozenset(once),
        frozenset(several),
    )


def dtypes_in_graph(outputs: Tensor) -> set[torch.dtype]:
    """Of all that is computed on the way to ``outputs``, as far as it is differentiated."""
    seen: set[Node] = set()
    waiting = [outputs.grad_fn]
    dtypes = {outputs.dtype}
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        metadata: Any = getattr(node, "_input_metadata", ())
        dtypes |= {values.dtype for values in metadata}
        waiting += [child for child, _ in node.next_functions]
    return dtypes


@cache
def _operation(name: str) -> tuple[str, str | None]:
    """Its name without number, and the attribute that holds the dimensions."""
    key = name.rstrip("0123456789").removesuffix("Backward")
    return key, _OF_DIMENSIONS.get(key)


@cache
def _needs_no_look(name: str) -> bool:
    """Whether an operation of this name has a fixed way, whatever its dimensions and factors."""
    key, attribute = _operation(name)
    return attribute is None and key in _KNOWN and key not in ("Mm", "Addmm")


def _described(node: Node, name: str) -> tuple[str, Hashable]:
    """The operation without number, and the dimensions that it works on."""
    key, attribute = _operation(name)
    if attribute is None:
        return key, None
    dimensions: Hashable = getattr(node, attribute, None)
    if key == "Transpose":
        dimensions = (getattr(node, "_saved_dim0", None), dimensions)
    return key, dimensions


def _has_a_fixed_way(
    key: str, dimensions: Hashable, children: tuple[tuple[Node | None, int], ...]
) -> bool:
    if key in ("Mm", "Addmm"):  # rows of the first factor stay rows, those of the second do not
        return children[-1][0] is None or _is_weight(children[-1][0])
    return key in _KNOWN and not (key in _PICKS and dimensions == 0)


def _is_weight(node: Node | None) -> bool:
    """Whether this is a parameter, transposed perhaps."""
    while node is not None and node.name() != _ACCUMULATE:
        if len(node.next_functions) != 1:
            return False
        node = node.next_functions[0][0]
    return node is not None


def _is_used_once(
    node: Node, uses: Mapping[Node, int], user: Mapping[Node, Node], ends: Collection[Node]
) -> bool:
    """Whether one way leads from a parameter to where it meets something else."""
    while uses[node] == 1:
        node = user[node]
        if node in ends or len(node.next_functions) != 1:
            return True
        if node not in user:  # the output itself
            return True
    return False
