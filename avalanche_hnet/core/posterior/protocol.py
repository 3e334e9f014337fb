"""What all posteriors over a network's weights offer, whatever their covariance."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from avalanche_hnet.core.common.likelihoods import Likelihood
from avalanche_hnet.core.fisher.options import FisherKind


class Term(Protocol):
    """A part of a loss, as a function of a model's parameters."""

    @property
    def names(self) -> list[str]:
        """Of the parameters that take part."""

    def __call__(self, parameters: Mapping[str, Tensor], skip: Container[str] = ()) -> Tensor:
        """The value at ``parameters``, a scalar that can be differentiated once.

        Args:
            parameters: by name, of which all that take part are needed.
            skip: names that are left out, as if these parameters stood at the term's minimum.
        """


@runtime_checkable
class Posterior(Protocol):
    """A Gaussian posterior N(φ*, Λ⁻¹) under a prior N(μ₀, σ² I), one experience at a time.

    Each element of each parameter is ``known`` (trained in an earlier experience) or not, and in an
    experience *active* or not. With N samples, it minimises mean NLL + 1/N (prior term + λ EWC
    term), and :meth:`update` takes the Laplace approximation at the minimum.
    :class:`GaussianPosterior` has a diagonal Λ, :class:`KroneckerPosterior` one with Kronecker
    products for layers.

    Attributes:
        prior_variance: σ².
        likelihood: that it was learned with, for predictions; None if not known.
    """

    prior_variance: float
    likelihood: Likelihood | None

    @property
    def mean(self) -> dict[str, Tensor]:
        """φ* by parameter name."""

    @property
    def precision(self) -> dict[str, Tensor]:
        """The diagonal of Λ by parameter name."""

    @property
    def known(self) -> dict[str, Tensor]:
        """Boolean tensors by parameter name."""

    def align(self, parameters: Mapping[str, Tensor]) -> bool:
        """Take in parameters that are new, have grown, moved or left; whether any has."""

    def forget(self) -> None:
        """Return to the prior: nothing is known any more."""

    def prior_term(self, active: Mapping[str, Tensor], factor: float = 1.0) -> Term:
        """The prior's part of the loss: of the active elements that are not known."""

    def ewc_term(self, factor: float = 1.0, skip: Container[str] = ()) -> Term:
        """The earlier experiences' part of the loss: of the known elements."""

    def fisher(
        self,
        model: nn.Module,
        batches: Iterable[Sequence[Tensor]],
        *,
        likelihood: Likelihood | None = None,
        kind: FisherKind = "empirical",
        max_samples: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Any:
        """The Fisher information of a model, averaged over samples, as :meth:`update` takes it."""

    def update(
        self,
        parameters: Mapping[str, Tensor],
        fisher: Any,
        n_samples: int,
        active: Mapping[str, Tensor],
        gamma: float = 1.0,
    ) -> None:
        """Take in an experience that has been trained on."""

    def sample(self, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """One draw φ ~ N(φ*, Λ⁻¹), by parameter name; what is not known comes from the prior."""

    def output_variance(
        self,
        model: nn.Module,
        x: Any,
        task_label: int | None = None,
        is_needed: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Outputs f(x) of a model at the mean and the diagonal of J Λ⁻¹ Jᵀ, both (B, …).

        J is their Jacobian. ``is_needed`` turns outputs into a mask of output units, flattened
        (U,); the variance of the others is left at zero.
        """

    def state_dict(self) -> dict[str, Any]:
        """Everything there is to know, for ``torch.save``."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the posterior of :meth:`state_dict`."""
