"""Where the generated parameters of a main network lie in one flat vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from math import prod

import torch
from torch import Tensor, nn


class WeightLayout:
    """The parameters of a module that are generated, one after the other in a vector of W weights.

    Args:
        target: any module. Parameters that do not require grad are never generated.
        generate: shell-style patterns of parameter names (``"*.weight"``, ``"layer4.*"``), one
            or several.

    Attributes:
        shapes: shape of each generated parameter, by name, in the order of the vector.
        n_weights: W.

    Raises:
        TypeError: if ``target`` is no module.
        ValueError: if nothing is generated, or a pattern matches nothing.
    """

    def __init__(self, target: nn.Module, generate: str | Sequence[str] = "*") -> None:
        if not isinstance(target, nn.Module):
            raise TypeError(f"target must be a torch.nn.Module, got {target!r}")
        patterns = [generate] if isinstance(generate, str) else list(generate)
        candidates = {n: p for n, p in target.named_parameters() if p.requires_grad}
        if not candidates:
            raise ValueError(
                f"target {type(target).__name__} has no parameter that requires grad, so there is "
                "nothing to generate"
            )
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in candidates):
                raise ValueError(
                    f"generate={pattern!r} matches no parameter that requires grad; their names "
                    f"are {', '.join(candidates)}"
                )
        self.shapes: dict[str, torch.Size] = {
            name: parameter.shape
            for name, parameter in candidates.items()
            if any(fnmatchcase(name, pattern) for pattern in patterns)
        }
        if not self.shapes:
            raise ValueError("generate must name at least one pattern, got none")
        self._sizes = [prod(shape) for shape in self.shapes.values()]
        self.n_weights = sum(self._sizes)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Parameters (…, *shape) by name, as views of ``flat`` (…, W) or of its first W columns."""
        rest = flat.shape[-1] - self.n_weights
        parts = flat.split([*self._sizes, rest] if rest else self._sizes, dim=-1)
        return {
            name: part.view((*flat.shape[:-1], *shape))
            for (name, shape), part in zip(self.shapes.items(), parts, strict=False)
        }

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The inverse of :meth:`views` for a single set of parameters: a vector (W,)."""
        return torch.cat([tensors[name].flatten() for name in self.shapes])
