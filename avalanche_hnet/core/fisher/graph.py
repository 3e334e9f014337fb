"""What the autograd graph of a batch says about its layers."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

# Operations that keep samples together and in order, one after the other in memory, whatever the
# numbers are, if the shapes before and after are as :func:`_keeps_order` wants them.
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
# These take an operand to several places, and products with constants choose among them.
_BROADCASTING = {*_ELEMENTWISE, "Expand", "Repeat"}
# Of a parameter, these leave a tensor that depends on no sample.
_OF_WEIGHTS = {
    "T", "Transpose", "Permute", "View", "UnsafeView", "ReshapeAlias", "Expand", "Squeeze",
    "Unsqueeze", "Slice", "Select", "ToCopy", "Clone", "Alias",
}  # fmt: skip
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
        key, dimensions = _described(node, name)
        description.append((name, dimensions))
        is_fixed = is_fixed and _keeps_order(node, key, dimensions, len(outputs))
        is_opaque = is_opaque or key.startswith("CheckpointFunction")
        for child, _ in node.next_functions:
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


def _described(node: Node, name: str) -> tuple[str, Hashable]:
    """The operation without number, and the dimensions that it works on."""
    key, attribute = _operation(name)
    if attribute is None:
        return key, None
    dimensions: Hashable = getattr(node, attribute, None)
    if key == "Transpose":
        dimensions = (getattr(node, "_saved_dim0", None), dimensions)
    return key, dimensions


def _keeps_order(node: Node, key: str, dimensions: Hashable, n_samples: int) -> bool:
    """Whether samples that come one after the other in memory leave so, whatever the numbers.

    They do where they are in dimension 0 before and after, split perhaps, and no rows are mixed.
    """
    if _is_weight(node, n_samples):
        return True
    shape, children = _shape(node), node.next_functions
    if key not in _KNOWN or not shape or shape[0] % n_samples:
        return False
    if key == "T" or (key in ("Mm", "Addmm") and not _is_weight(children[-1][0], n_samples)):
        return False
    if key in _BROADCASTING:
        of_samples = [c for c in children if c[0] is not None and not _is_weight(c[0], n_samples)]
        return all(_has_rows_of(_shape(*child), shape) for child in of_samples)
    n_dimensions = max([len(shape), *(len(_shape(*child)) for child in children)])
    if key == "Permute":  # names all dimensions
        return not _includes_rows(dimensions[1:], n_dimensions)  # type: ignore[index]
    return not _includes_rows(dimensions, n_dimensions)


def _shape(node: Node | None, number: int = 0) -> torch.Size:
    """Of a result of an operation; no dimensions where it is not known."""
    metadata: Any = getattr(node, "_input_metadata", ())
    shape: torch.Size = metadata[number].shape if number < len(metadata) else torch.Size()
    return shape


def _has_rows_of(shape: torch.Size, other: torch.Size) -> bool:
    return len(shape) == len(other) and shape[0] == other[0]


def _includes_rows(dimensions: Hashable, n_dimensions: int) -> bool:
    """Whether dimension 0 is one of these, of which negative ones are saved as unsigned numbers."""
    if not isinstance(dimensions, tuple):
        dimensions = (dimensions,)
    numbers = [d % 2**64 for d in dimensions if isinstance(d, int)]
    return any(d in (0, 2**64 - n_dimensions) for d in numbers)


def _is_weight(node: Node | None, n_samples: int) -> bool:
    """Whether this is a parameter in another shape, or embeddings of no samples (positions)."""
    while node is not None and node.name() != _ACCUMULATE:
        key, _ = _operation(node.name())
        shape = _shape(node)
        is_of_positions = key == "Embedding" and bool(shape) and shape[0] % n_samples != 0
        if not is_of_positions and (key not in _OF_WEIGHTS or len(node.next_functions) != 1):
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
