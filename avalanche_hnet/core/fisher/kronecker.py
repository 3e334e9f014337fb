"""Kronecker-factored Fisher information of any ``nn.Module``."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, get_args

import torch
from torch import nn

from avalanche_hnet.core.common.evaluation import undisturbed
from avalanche_hnet.core.common.likelihoods import Likelihood
from avalanche_hnet.core.fisher.batches import random_subset
from avalanche_hnet.core.fisher.kronecker_layer import KroneckerFisher, layout_of
from avalanche_hnet.core.fisher.kronecker_rules import kronecker_rule
from avalanche_hnet.core.fisher.kronecker_sums import WeightSharing
from avalanche_hnet.core.fisher.layer_rows import LayerRows
from avalanche_hnet.core.fisher.means import (
    UntrustedLayersError,
    fisher_means,
    wanted_parameters,
)
from avalanche_hnet.core.fisher.options import FisherKind, FisherOptions
from avalanche_hnet.core.fisher.share import own_options, repeatable


def kronecker_factors(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    likelihood: Likelihood | None = None,
    kind: FisherKind = "empirical",
    weight_sharing: WeightSharing = "expand",
    max_samples: int | None = None,
    generator: torch.Generator | None = None,
) -> KroneckerFisher:
    """Fisher information as a Kronecker product A ⊗ G per layer, averaged over samples.

    With a the inputs of a layer (a one appended for the bias) and g the gradients of the NLL by
    its outputs, A = mean a aᵀ and G = mean g gᵀ (Martens & Grosse 2015, arXiv 1503.05671). For a
    single sample, or where a and g are independent, the product is the Fisher of the layer.
    Weights that a sample uses at several positions (sequences, pixels) are treated as
    ``weight_sharing`` says (Eschenhagen et al. 2023, arXiv 2311.00636, section 3):

    - ``"expand"``: positions are like samples, A = mean over samples and positions of a aᵀ, and
      G = mean over samples of Σ g gᵀ over positions (for convolutions: Grosse & Martens 2016);
    - ``"reduce"``: a is averaged and g is summed over positions first.

    Of a table (an embedding) only the diagonal of A is kept, and padding (``padding_idx``) is no
    position.

    Layers have factors if they have a rule (:func:`register_kronecker_rule`) that holds in every
    batch: linear layers, convolutions and embeddings, unless they are used twice, tied, or the
    like. All other parameters have their diagonal, as :func:`diagonal_fisher` gives it. Rules are
    tried and trusted in the same way as there. A layer that loses that trust after the first
    batches costs a pass over the data from the start; batches that can be iterated over only once
    are therefore kept.

    In A of a layer that is called for some of the samples only (a head of one task; a table, for
    all that are not padding alone) the mean is over these; in G it is over all.

    Args:
        model: see :func:`diagonal_fisher`, as for all that is not named here.
        batches: see there.
        likelihood: see there.
        kind: see there; ``"exact"`` costs a backward pass per output unit.
        weight_sharing: see above.
        max_samples: see there.
        generator: see there.

    Returns:
        The factors by layer, in the type of the layer's weight (float32 where that is half
        precision), and the diagonal of what is left.

    Raises:
        ValueError: for an unknown ``weight_sharing``, and as :func:`diagonal_fisher` does.
    """
    if weight_sharing not in get_args(WeightSharing):
        raise ValueError(
            f"weight_sharing must be one of {get_args(WeightSharing)}, got {weight_sharing!r}"
        )
    options = FisherOptions(likelihood, kind, max_samples, generator)
    parameters = wanted_parameters(model)
    layers = factored_layers(model, parameters)
    with undisturbed(model), torch.inference_mode(False), torch.enable_grad():
        if max_samples is not None:
            batches = random_subset(batches, max_samples, generator)
        batches, options = repeatable(batches), own_options(options, batches)
        generator = options.generator
        state = _random_state(generator)
        while True:
            try:
                means = fisher_means(model, parameters, batches, options, layers, weight_sharing)
            except UntrustedLayersError as error:
                layers = {p: rows for p, rows in layers.items() if p not in error.prefixes}
                _set_random_state(generator, state)
            else:
                break
    return KroneckerFisher(means.factors, means.squares)


def factored_layers(model: nn.Module, names: Collection[str]) -> dict[str, LayerRows]:
    """The layers that have factors if their rules can be trusted, by name.

    Args:
        model: that has them.
        names: of the parameters that the Fisher is of.
    """
    layers: dict[str, LayerRows] = {}
    for prefix, layer in model.named_modules():
        rule, layout = kronecker_rule(layer), layout_of(prefix, layer, names)
        if rule is not None and layout is not None:
            layers[prefix] = LayerRows(layout, rule)
    return layers


def _random_state(generator: torch.Generator | None) -> torch.Tensor:
    return torch.get_rng_state() if generator is None else generator.get_state()


def _set_random_state(generator: torch.Generator | None, state: torch.Tensor) -> None:
    if generator is None:
        torch.set_rng_state(state)
    else:
        generator.set_state(state)
