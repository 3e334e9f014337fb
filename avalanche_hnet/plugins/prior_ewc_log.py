"""What :class:`PriorEWCPlugin` publishes, all under ``PriorEWC/``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor

from avalanche_hnet.core.fisher.kronecker_layer import KroneckerFisher
from avalanche_hnet.core.posterior.kronecker import KroneckerPosterior
from avalanche_hnet.core.posterior.protocol import Posterior
from avalanche_hnet.plugins.publish import Histogram, publish


def publish_losses(
    strategy: SupervisedTemplate, origin: object, losses: Mapping[str, Tensor]
) -> None:
    """The terms of an iteration's loss, by name."""
    for name, value in losses.items():
        publish(strategy, origin, f"PriorEWC/{name}", value.item())


def publish_cost(
    strategy: SupervisedTemplate, origin: object, seconds: float, n_samples: int
) -> None:
    """How long the Fisher took, and of how many samples it is."""
    publish(strategy, origin, "PriorEWC/FisherSeconds", seconds)
    publish(strategy, origin, "PriorEWC/FisherSamples", float(n_samples))


def publish_fisher(
    strategy: SupervisedTemplate,
    origin: object,
    fisher: KroneckerFisher | Mapping[str, Tensor],
    active: Mapping[str, Tensor],
) -> None:
    """The diagonal of the Fisher, over the active elements."""
    diagonal = fisher.whole_diagonal() if isinstance(fisher, KroneckerFisher) else fisher
    publish_distribution(strategy, origin, "Fisher", _select(diagonal, active))


def publish_posterior(
    strategy: SupervisedTemplate,
    origin: object,
    posterior: Posterior,
    active: Mapping[str, Tensor],
) -> None:
    """Logarithms of the diagonal of Λ, over the active elements, and of its layers' eigenvalues.

    These are of all layers that have a Kronecker product.
    """
    log_precision = _select(posterior.precision, active).log()
    publish_distribution(strategy, origin, "LogPrecision", log_precision)
    if isinstance(posterior, KroneckerPosterior) and (layers := posterior.covariances()):
        variances = torch.cat([layer.variances.flatten() for layer in layers.values()])
        publish_distribution(strategy, origin, "LogEigenvalues", -variances.log())


def publish_distribution(
    strategy: SupervisedTemplate, origin: object, name: str, values: Tensor
) -> None:
    """Minimum, maximum and histogram of the values that are finite; a warning if none is."""
    finite = values[values.isfinite()]
    if len(finite) == 0:
        warnings.warn(
            f"{name} of the {len(values)} active elements has no finite value, so its "
            "distribution is not published",
            stacklevel=2,
        )
        return
    publish(strategy, origin, f"PriorEWC/{name}Min", finite.min().item())
    publish(strategy, origin, f"PriorEWC/{name}Max", finite.max().item())
    publish(strategy, origin, f"PriorEWC/{name}", Histogram(finite))


def _select(tensors: Mapping[str, Tensor], active: Mapping[str, Tensor]) -> Tensor:
    """The active elements of all tensors, in one vector."""
    return torch.cat([tensors[name][mask] for name, mask in active.items()])
