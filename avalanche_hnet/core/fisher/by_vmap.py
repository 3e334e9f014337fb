"""Squared per-sample gradients by ``vmap(grad)``, some samples at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from avalanche_hnet.core.common.samples import Samples, like, tensors_of
from avalanche_hnet.core.fisher.methods import ByName, PerSample
from avalanche_hnet.core.fisher.one_task import OneTask

# At most so many per-sample gradients are held at a time (64 MiB of float32).
_BUDGET = 2**24


@dataclass(frozen=True, eq=False)
class ByVmap(PerSample):
    """Any model that ``torch.func`` can follow.

    Attributes:
        names: of the parameters.
        task: the model.
        x: inputs of the batch.
    """

    names: Sequence[str]
    task: OneTask
    x: Tensor | Samples

    def gradients(self, factor: Tensor) -> Iterator[tuple[slice, ByName]]:
        """See :class:`PerSample`."""
        if not self.names:
            return
        others = {n: p.detach() for n, p in self.task.model.named_parameters()}
        chosen = {n: others.pop(n) for n in self.names}
        label = self.task.label
        task = replace(self.task, label=int(label) if isinstance(label, Tensor) else label)

        def weighted_output(chosen: ByName, xi: list[Tensor], ci: Tensor) -> Tensor:
            out = task.outputs(like(self.x, [t[None] for t in xi]), {**others, **chosen})
            return (out[0] * ci).sum()

        of_samples = vmap(grad(weighted_output), in_dims=(None, 0, 0))
        step = max(1, _BUDGET // max(1, sum(p.numel() for p in chosen.values())))
        for start in range(0, len(self.x), step):
            rows = slice(start, start + step)
            with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no batching rule
                gradients = of_samples(chosen, tensors_of(self.x[rows]), factor[rows])
            yield rows, gradients
