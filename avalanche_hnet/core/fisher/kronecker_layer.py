"""The Fisher of a layer as a Kronecker product, and the matrices that its parameters are."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LayerLayout:
    """A layer's parameters as matrices W (K, O, I): K groups, O output units of I inputs each.

    The bias, if there is one, is the last column. The rows of a table that is looked up
    (:class:`torch.nn.Embedding`) are the columns of W.

    Attributes:
        weight: its name in the model.
        bias: its name in the model, or None.
        groups: K, more than 1 for grouped convolutions.
        is_table: whether the weight is looked up: (I, O), not (K·O, I…).
        row_shape: of the weight without dimension 0, in which a layer may grow.
    """

    weight: str
    bias: str | None
    groups: int
    is_table: bool
    row_shape: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parameters: the weight and, if there is one, the bias."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def matrices(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """W (K, O, I), or (K, O, I + 1) with a bias, from tensors of the parameters' shapes.

        Without a bias it is a view where it can be. Masks keep their type.
        """
        weight = tensors[self.weight]
        if self.is_table:
            return weight.T[None]
        weight = weight.reshape(self.groups, len(weight) // self.groups, -1)
        if self.bias is None:
            return weight
        return torch.cat([weight, tensors[self.bias].view(*weight.shape[:2], 1)], 2)

    def tensors(self, matrices: Tensor) -> dict[str, Tensor]:
        """The reverse: tensors of the parameters' shapes by name, as views where they can be."""
        if self.is_table:
            return {self.weight: matrices[0].T}
        if self.bias is None:
            return {self.weight: matrices.reshape(-1, *self.row_shape)}
        # narrow and select take a third of the time of an index with an ellipsis.
        n_inputs = matrices.shape[-1] - 1
        return {
            self.weight: matrices.narrow(-1, 0, n_inputs).reshape(-1, *self.row_shape),
            self.bias: matrices.select(-1, n_inputs).reshape(-1),
        }

    def sizes(self, weight: Tensor) -> tuple[int, int, int]:
        """K, O and I (with the bias) of a layer with this weight."""
        if self.is_table:
            return 1, weight.shape[1], weight.shape[0]
        n_inputs = weight[:1].numel() if len(weight) else torch.Size(self.row_shape).numel()
        return self.groups, len(weight) // self.groups, n_inputs + (self.bias is not None)


def layout_of(prefix: str, layer: nn.Module, names: Container[str]) -> LayerLayout | None:
    """How a layer's parameters make up matrices, or None if they do not.

    It takes a weight (K·O, I…), K the layer's ``groups`` (1 if it has none), and may take a bias
    (K·O,); or the table (I, O) of an :class:`torch.nn.Embedding`.

    Args:
        prefix: the layer's name in the model.
        layer: itself.
        names: of the parameters that take part; others are left out.
    """
    dot = f"{prefix}." if prefix else ""
    own = {n: p for n, p in layer._parameters.items() if p is not None and f"{dot}{n}" in names}
    weight, bias = own.get("weight"), own.get("bias")
    is_table = isinstance(layer, nn.Embedding)
    groups = 1 if is_table else int(getattr(layer, "groups", 1))
    if weight is None or weight.dim() < 2 or own.keys() - {"weight", "bias"}:
        return None
    if len(weight) % groups or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    bias_name = None if bias is None else f"{dot}bias"
    return LayerLayout(f"{dot}weight", bias_name, groups, is_table, tuple(weight.shape[1:]))


@dataclass(frozen=True, eq=False)
class KroneckerFactor:
    """The Fisher of a layer, A ⊗ G for each of its groups: F[(o, i), (p, j)] = G_op A_ij.

    Attributes:
        layout: how the layer's parameters make up the matrices W (K, O, I) that F is of.
        inputs: A, (K, I, I) and positive semidefinite, or its diagonal (K, I) for a table.
        outputs: G, (K, O, O), positive semidefinite.
    """

    layout: LayerLayout
    inputs: Tensor
    outputs: Tensor

    def diagonal(self) -> dict[str, Tensor]:
        """The diagonal of F, in the shapes of the layer's parameters, by name."""
        inputs = self.inputs if self.inputs.dim() == 2 else self.inputs.diagonal(dim1=1, dim2=2)
        outputs = self.outputs.diagonal(dim1=1, dim2=2)
        return self.layout.tensors(outputs[:, :, None] * inputs[:, None, :])


@dataclass(frozen=True, eq=False)
class KroneckerFisher:
    """Fisher information of a model: a Kronecker product for each layer that has one.

    Attributes:
        layers: the products, by the names of layers.
        diagonal: of the parameters of no such layer, by name, in their shapes.
    """

    layers: dict[str, KroneckerFactor]
    diagonal: dict[str, Tensor]

    def whole_diagonal(self) -> dict[str, Tensor]:
        """That of all parameters, in their shapes: of the products, and of what is left."""
        total = dict(self.diagonal)
        for layer in self.layers.values():
            total |= layer.diagonal()
        return total
