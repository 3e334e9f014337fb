"""Whether the rows of a layer's call are the samples of the batch."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from avalanche_hnet.core.fisher.recording import Recording


def misaligned(
    recording: Recording, outputs: Tensor, coarsest: torch.dtype, prefixes: Collection[str]
) -> set[str]:
    """Layers with a row of output gradients that does not come from the sample of its number.

    The gradient of Σ_n s_n c_n f_n is, at row r of a layer's output, Σ_n s_n g_rn, where g_rn is
    the share of sample n. If the samples are in dimension 0, that is s_r times the gradient
    without s, for every s; if not, hardly for any. The s_n are powers of two, so that nothing is
    rounded.

    Args:
        recording: the calls behind ``outputs`` (B, …).
        outputs: of the batch.
        coarsest: floating-point type on the way.
        prefixes: of the layers that are looked at.
    """
    n_samples = len(outputs)
    generator = torch.Generator().manual_seed(0)
    range_ = 2 if coarsest == torch.float16 else 8
    exponents = torch.randint(-range_, range_ + 1, (n_samples,), generator=generator)
    scale = torch.exp2(exponents.float()).to(outputs)
    factor = random_factor(outputs)
    scaled = factor * _by_row(scale, factor)
    tolerance = torch.finfo(coarsest).eps ** 0.5
    plain = recording.output_gradients(outputs, factor, prefixes)
    wrong = set()
    for (call, g), (_, h) in zip(
        plain, recording.output_gradients(outputs, scaled, prefixes), strict=True
    ):
        if len(g) != n_samples:
            wrong.add(call.prefix)
            continue
        expected = g * _by_row(scale, g).to(g.dtype)
        if torch.equal(h, expected):
            continue
        rows = range(1, g.dim())
        difference = torch.linalg.vector_norm(h - expected, dim=[*rows])
        if not (difference <= tolerance * torch.linalg.vector_norm(expected, dim=[*rows])).all():
            wrong.add(call.prefix)
    return wrong


def active_rows(
    recording: Recording, outputs: Tensor, factor: Tensor, prefixes: Collection[str]
) -> Tensor:
    """For each of some layers the numbers of two samples that have the largest gradients by it."""
    rows = []
    for call, gradient in recording.output_gradients(outputs, factor, prefixes):
        size = _norm_of_rows(gradient)
        if call.inputs.is_floating_point():
            size = size * _norm_of_rows(call.inputs)
        rows.append(size.topk(min(2, len(size))).indices)
    return torch.cat(rows).unique()


def random_factor(outputs: Tensor) -> Tensor:
    """Random numbers like ``outputs`` (B, …), the same for the same shape."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(outputs.shape, generator=generator).to(outputs)


def _norm_of_rows(values: Tensor) -> Tensor:
    return values.float().flatten(1).norm(dim=1) if values.dim() > 1 else values.float().abs()


def _by_row(scale: Tensor, like: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (like.dim() - 1))
