"""Diagonal Fisher information of any ``nn.Module``, exact to rounding."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_hnet.core.common.evaluation import undisturbed
from avalanche_hnet.core.common.likelihoods import Likelihood
from avalanche_hnet.core.fisher.batches import random_subset
from avalanche_hnet.core.fisher.means import fisher_means, wanted_parameters
from avalanche_hnet.core.fisher.options import FisherKind, FisherOptions
from avalanche_hnet.core.fisher.share import own_options


def diagonal_fisher(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    likelihood: Likelihood | None = None,
    kind: FisherKind = "empirical",
    max_samples: int | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Diagonal of the Fisher information matrix, averaged over samples.

    F_i = 1/N Σ_n E_y[(∂/∂φ_i −log p(y | x_n, φ))²], where y is

    - ``"empirical"``: the label y_n of the data, without expectation;
    - ``"sampled"``: one label drawn from the model's own p(y | x_n, φ);
    - ``"exact"``: every label, weighted by p(y | x_n, φ), at one backward pass per output unit.

    Kunstner et al. 2019 (arXiv 1905.12558) and van de Ven 2025 (arXiv 2502.11756) discuss the
    difference. The model runs in evaluation mode; its modes, its gradients and the state of all
    random number generators except ``generator`` are afterwards what they were before.

    Layers with a rule (:func:`register_fisher_rule`) cost together one forward and one backward
    pass. A rule is tried on single samples, in float32 or better, when its layer first has
    gradients, and holds for a batch only if the samples are in dimension 0 of its layer's one
    call. What rules do not cover or get wrong is done by ``vmap(grad)`` in bounded memory or,
    where ``vmap`` cannot follow the model, one sample at a time, with a warning. The result is
    the same, also for models that ``squeeze()`` a batch of one, checkpoints, autocast inside the
    model, and in inference mode.

    Args:
        model: called as ``model(x)``, or as ``model(x, task_labels)`` if its ``forward`` takes
            task labels and the batches have them. What it returns may have more in it than the
            logits (:func:`logits_of`).
        batches: yields ``(x, y)`` or ``(x, y, …, task_labels)``, where ``x`` is a tensor or a
            mapping, tuple or dataclass of tensors, samples in dimension 0 of each; or mappings
            with the targets under ``"labels"``, task labels under ``"targets_task_labels"`` if
            there are any, and ``x`` in the others.
        likelihood: by default :class:`Categorical` for integer targets and :class:`Gaussian`
            with standard deviation 1 for real ones.
        kind: see above.
        max_samples: use at most so many samples, drawn uniformly without replacement, which
            leaves the estimate of the mean unbiased. Batches may be padded to different lengths.
        generator: draws labels and samples; by default PyTorch's global one, which is then
            restored, so that a second call draws the same.

    Returns:
        For each parameter that requires grad, by name, a non-negative tensor of its shape and
        type (float32 where that is half precision).

    Raises:
        ValueError: for an unknown ``kind``, ``max_samples`` below 1, no samples, a model without
            parameters that require grad, or one whose output for a sample depends on the other
            samples of the batch.
    """
    options = FisherOptions(likelihood, kind, max_samples, generator)
    parameters = wanted_parameters(model)
    with undisturbed(model), torch.inference_mode(False), torch.enable_grad():
        if max_samples is not None:
            batches = random_subset(batches, max_samples, generator)
        options = own_options(options, batches)
        return fisher_means(model, parameters, batches, options).squares
