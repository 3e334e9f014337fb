"""Whether the rows of a layer's call are the samples of the batch."""

from __future__ import annotations

from collections.abc import Collection, Iterator

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
    factor = random_factor(outputs)
    plain = [*recording.output_gradients(outputs, factor, prefixes)]
    wrong = {call.prefix for call, g in plain if len(g) != len(outputs)}
    for scale in _scales(len(outputs), coarsest):
        scale = scale.to(outputs)
        scaled = recording.output_gradients(outputs, factor * _by_row(scale, factor), prefixes)
        for (call, g), (_, h) in zip(plain, scaled, strict=True):
            if call.prefix not in wrong and not _are_scaled(g, h, scale, coarsest):
                wrong.add(call.prefix)
    return wrong


def _scales(n_samples: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """Signed powers of two (B,): no two alike or, for many samples, no two alike twice."""
    largest = 3 if dtype == torch.float16 else 16
    powers = torch.exp2(torch.arange(-largest, largest + 1).float())
    values = torch.cat([powers, -powers])
    generator = torch.Generator().manual_seed(0)
    for _ in range(1 if n_samples <= len(values) else 2):
        values = values[torch.randperm(len(values), generator=generator)]
        order = torch.randperm(n_samples, generator=generator)
        yield values[order % len(values)]


def _are_scaled(plain: Tensor, scaled: Tensor, scale: Tensor, dtype: torch.dtype) -> bool:
    """Whether the rows of ``scaled`` are ``scale`` times those of ``plain``, up to rounding."""
    expected = plain * _by_row(scale, plain).to(plain.dtype)
    if torch.equal(scaled, expected):
        return True
    difference, size = _norm_of_rows(scaled - expected), _norm_of_rows(expected)
    return bool((difference <= torch.finfo(dtype).eps ** 0.5 * size).all())


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
