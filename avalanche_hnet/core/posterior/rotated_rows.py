"""Variances that a layer adds to outputs, from the rows that its gradients are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from avalanche_hnet.core.fisher.layer_rows import Rows
from avalanche_hnet.core.fisher.layer_rules import gradients_of_table
from avalanche_hnet.core.posterior.layer_covariance import LayerCovariance

# At most so many numbers of gradients of samples are held at a time (64 MiB of float32).
_BUDGET = 2**24


def rotated_inputs(covariance: LayerCovariance, inputs: Tensor) -> Tensor:
    """A U_A for rows a (K, B, R, I) without the bias, for which a one is appended."""
    if covariance.layout.bias is not None:
        inputs = torch.cat([inputs, inputs.new_ones(*inputs.shape[:-1], 1)], -1)
    vectors = covariance.basis.input_vectors
    assert vectors is not None  # only a table's are the identity
    return inputs @ vectors[:, None].to(inputs.dtype)


def forms_of_rows(covariance: LayerCovariance, inputs: Tensor, gradients: Tensor) -> Tensor:
    """Jᵀ Σ J of each sample (B,), J = Σ_r g_r a_rᵀ its gradient by a layer's weights.

    Args:
        covariance: Σ.
        inputs: of :func:`rotated_inputs`, (K, B, R, I).
        gradients: g (K, B, R, O).
    """
    gradients = gradients @ covariance.basis.output_vectors[:, None].to(gradients.dtype)
    variances = covariance.variances.to(gradients.dtype)
    if gradients.shape[2] == 1:
        products = gradients[:, :, 0].square() @ variances * inputs[:, :, 0].square()
        return products.sum((0, 2))
    step = max(1, _BUDGET // variances.numel())
    return torch.cat(
        [
            ((g.mT @ a).square() * variances[:, None]).sum((0, 2, 3))
            for g, a in zip(gradients.split(step, 1), inputs.split(step, 1), strict=True)
        ]
    )


def forms_of_table(covariance: LayerCovariance, rows: Rows) -> Tensor:
    """The same for a table, whose rows are looked up by number."""
    n_positions = rows.inputs.shape[2:].numel()
    numbers = rows.inputs[0].clamp(min=0).reshape(rows.inputs.shape[1], n_positions)
    gradients = rows.gradients[0].reshape(-1, rows.gradients.shape[-1])
    variances = covariance.variances[0]
    n_samples, n_rows = rows.inputs.shape[1], variances.shape[1]
    first = torch.arange(n_samples, device=numbers.device)[:, None] * n_rows
    # All samples as one, of a table with rows for each of them.
    pairs, of_pairs, _ = gradients_of_table(
        (numbers + first).view(1, -1), gradients[None], n_samples * n_rows
    )
    rotated = of_pairs @ covariance.basis.output_vectors[0].to(of_pairs.dtype)
    forms = (rotated.square() * variances.T[pairs % n_rows].to(rotated.dtype)).sum(1)
    return forms.new_zeros(n_samples).index_add_(0, pairs // n_rows, forms)
