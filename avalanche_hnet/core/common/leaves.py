"""The leaves of an autograd graph."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def ids_of_leaves(output: Tensor) -> set[int]:
    """The ``id`` of each tensor that gets a gradient when ``output`` is differentiated.

    Nothing is computed: the graph is only walked through.
    """
    if output.grad_fn is None:
        return {id(output)} if output.requires_grad else set()
    waiting: list[Any] = [output.grad_fn]
    visited = {output.grad_fn}
    leaves = set()
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        following = {n for n, _ in node.next_functions if n is not None} - visited
        visited |= following
        waiting.extend(following)
    return leaves
