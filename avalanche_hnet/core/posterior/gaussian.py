"""A diagonal Gaussian posterior over a network's weights, updated one experience at a time."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from avalanche_hnet.core.common.arguments import (
    at_least,
    fraction,
    generator_or_none,
    one_of,
    positive,
)
from avalanche_hnet.core.common.checksums import check_checksums, with_checksums
from avalanche_hnet.core.common.exchange import exchange
from avalanche_hnet.core.common.likelihoods import (
    Likelihood,
    likelihood_from_state,
    likelihood_state,
)
from avalanche_hnet.core.common.quadratic import Quadratic
from avalanche_hnet.core.fisher.diagonal import diagonal_fisher
from avalanche_hnet.core.fisher.output_variance import output_variance
from avalanche_hnet.core.posterior.gaussian_checks import (
    check_loaded,
    check_shapes,
    check_update,
)
from avalanche_hnet.core.posterior.gaussian_state import check_state
from avalanche_hnet.core.posterior.gaussian_tensors import GaussianTensors

PriorMean = Literal["zero", "initial"]


class GaussianPosterior:
    """N(φ*, diag(Λ)⁻¹) over all weights φ trained so far, under a prior N(μ₀, σ² I).

    Each element of each parameter is ``known`` (trained in an earlier experience) or not, and in
    an experience *active* (its loss depends on it) or not. With N samples, an experience
    minimises

        mean NLL + 1/N [1/(2σ²) Σ_{active, not known} (φᵢ − μ₀ᵢ)² + (λ/2) Σ_{known} Λᵢ (φᵢ − φ*ᵢ)²]

    of which :meth:`prior_penalty` and :meth:`ewc_penalty` give the two sums, without 1/N and λ,
    and :meth:`update` then takes the Laplace approximation at its minimum,

        Λᵢ ← 1/σ² + γ (Λᵢ − 1/σ²) + [active] N Fᵢ,    φ* ← φ,    known ← known ∪ active,

    so that the prior enters once per element and γ forgets data, never the prior. Elements that
    are not known hold the prior: mean μ₀ and precision 1/σ².

    Its tensors are in float32 at least, whatever the type of the weights. None of them is changed
    in place: each method makes new ones and exchanges all at once, so that an interrupt leaves
    either the posterior before it or the one after it.

    Online EWC as in Schwarz et al. 2018 (arXiv 1805.06370) and Huszár 2018 (PNAS 115, E2496),
    with the prior and the masks made explicit.

    Attributes:
        prior_variance: σ².
        likelihood: that it was learned with, for predictions; None if not known. The state has
            it, unless it is of a user's own class.

    Raises:
        TypeError, ValueError: if ``prior_variance`` is not a positive number or ``prior_mean`` not
            one of its kinds.
    """

    fisher = staticmethod(diagonal_fisher)
    """The Fisher for :meth:`update`."""

    def __init__(self, prior_variance: float = 1.0, prior_mean: PriorMean = "zero") -> None:
        positive(prior_variance=prior_variance)
        one_of(PriorMean, prior_mean=prior_mean)
        self.prior_variance = float(prior_variance)
        self._prior_mean_kind = prior_mean
        self.likelihood: Likelihood | None = None
        self._tensors = GaussianTensors({}, {}, {}, {})
        self._just_loaded = False

    @property
    def mean(self) -> dict[str, Tensor]:
        """φ* by parameter name."""
        return self._tensors.mean

    @property
    def precision(self) -> dict[str, Tensor]:
        """Λ by parameter name."""
        return self._tensors.precision

    @property
    def known(self) -> dict[str, Tensor]:
        """Boolean tensors by parameter name."""
        return self._tensors.known

    def align(self, parameters: Mapping[str, Tensor]) -> bool:
        """Take in parameters that are new, have grown, moved to another device, or left.

        A parameter may grow in dimension 0 (output units): the new rows hold the prior, which
        for ``prior_mean="initial"`` is centred on the values that they have now. A parameter
        that is new but does not require grad is left out; one that is not among ``parameters``
        any more is forgotten.

        Args:
            parameters: all parameters of the model, by name.

        Returns:
            Whether anything changed.

        Raises:
            ValueError: if a shape differs in another way than by new rows, or, after
                :meth:`load_state_dict`, if a parameter with known elements is missing or not at
                the posterior's mean.
        """
        before, aligned = self._tensors, _aligned(self, parameters)
        exchange(self, _tensors=aligned, _just_loaded=False)
        return before is not aligned

    def forget(self) -> None:
        """Return to the prior: nothing is known any more."""
        prior_mean, mean, precision, known = self._tensors
        self._tensors = GaussianTensors(
            prior_mean,
            {n: prior_mean[n].clone() for n in mean},
            {n: torch.full_like(p, 1 / self.prior_variance) for n, p in precision.items()},
            {n: torch.zeros_like(k) for n, k in known.items()},
        )

    def prior_term(self, active: Mapping[str, Tensor], factor: float = 1.0) -> Quadratic:
        """1/(2σ²) Σ (φᵢ − μ₀ᵢ)² over the active elements that are not known, as a function of φ.

        Args:
            active: boolean masks by parameter name; what is missing is inactive.
            factor: of the sum.
        """
        new = {n: active[n] & ~self.known[n] for n in self.mean if n in active}
        weight = factor / self.prior_variance
        return Quadratic(
            {n: weight * mask.to(self.mean[n].dtype) for n, mask in new.items() if mask.any()},
            self._tensors.prior_mean,
        )

    def ewc_term(self, factor: float = 1.0, skip: Container[str] = ()) -> Quadratic:
        """½ Σ Λᵢ (φᵢ − φ*ᵢ)² over the known elements, as a function of φ.

        Args:
            factor: of the sum.
            skip: names of parameters that are left out.
        """
        return Quadratic(
            {
                n: factor * self.precision[n] * known
                for n, known in self.known.items()
                if factor and n not in skip and known.any()
            },
            self.mean,
        )

    def prior_penalty(
        self, parameters: Mapping[str, Tensor], active: Mapping[str, Tensor]
    ) -> Tensor:
        """Value of :meth:`prior_term` at ``parameters``, a differentiable scalar."""
        return self.prior_term(active)(parameters)

    def ewc_penalty(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Value of :meth:`ewc_term` at ``parameters``, a differentiable scalar."""
        return self.ewc_term()(parameters)

    @torch.no_grad()
    def update(
        self,
        parameters: Mapping[str, Tensor],
        fisher: Mapping[str, Tensor],
        n_samples: int,
        active: Mapping[str, Tensor],
        gamma: float = 1.0,
    ) -> None:
        """Take in an experience that has been trained on.

        Args:
            parameters: φ at the minimum, by name.
            fisher: F, the Fisher *averaged* over samples, by name; what is missing is zero.
            n_samples: N, the number of samples of the experience.
            active: boolean masks by name; what is missing is inactive.
            gamma: γ, in [0, 1]: how much of the precision from earlier data is kept.

        Raises:
            TypeError, ValueError: if γ or N is out of range, a mask or Fisher does not fit its
                parameter, or an active element's Fisher is negative or not finite. Nothing is
                changed then.
        """
        fraction(gamma=gamma)
        at_least(1, n_samples=n_samples)
        check_update(parameters, fisher, active)
        prior_mean, mean, precision, known = _aligned(self, parameters)
        known = {n: k | active[n] if n in active else k for n, k in known.items()}
        mean = {n: torch.where(known[n], parameters[n], m) for n, m in mean.items()}
        prior_precision = 1 / self.prior_variance
        precision = {
            n: (p - prior_precision) * gamma + prior_precision for n, p in precision.items()
        }
        for name in precision.keys() & active.keys() & fisher.keys():
            of_data = fisher[name].to(precision[name]) * n_samples
            precision[name] += torch.where(active[name], of_data, 0)
        tensors = GaussianTensors(prior_mean, mean, precision, known)
        exchange(self, _tensors=tensors, _just_loaded=False)

    def sample(self, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """One draw φ ~ N(φ*, Λ⁻¹), by parameter name; what is not known comes from the prior.

        Args:
            generator: makes the draw, on any device; PyTorch's global one by default.

        Raises:
            TypeError: if ``generator`` is something else.
        """
        generator_or_none(generator=generator)
        return {
            name: mean + standard_normal(mean, generator) * self.precision[name].rsqrt()
            for name, mean in self.mean.items()
        }

    def output_variance(
        self,
        model: nn.Module,
        x: Any,
        task_label: int | None = None,
        is_needed: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Outputs of a model at the mean, and the variances of its linearisation, both (B, …).

        See :func:`~avalanche_hnet.core.fisher.output_variance.output_variance`.
        """
        variances = {name: p.reciprocal() for name, p in self.precision.items()}
        return output_variance(model, variances, x, task_label, is_needed)

    def state_dict(self) -> dict[str, Any]:
        """Everything there is to know, with checksums, in dictionaries for ``torch.save``."""
        return with_checksums(entries_of(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the posterior of :meth:`state_dict`.

        Raises:
            ValueError: naming the entry, if ``state`` is not such a dictionary, has another prior,
                contradicts itself or was damaged. Nothing is changed then.
        """
        check_state(state, entries_of(self))
        likelihood = likelihood_from_state(state.get("likelihood"))
        check_checksums(state)
        fields = [state[field] for field in GaussianTensors._fields]
        names = state["mean"].keys()
        tensors = GaussianTensors(*({n: of[n].detach().clone() for n in names} for of in fields))
        exchange(self, _tensors=tensors, likelihood=likelihood, _just_loaded=True)


def entries_of(posterior: GaussianPosterior) -> dict[str, Any]:
    """Of its state, but the checksums."""
    tensors = {field: dict(of) for field, of in posterior._tensors._asdict().items()}
    return {
        "prior_variance": posterior.prior_variance,
        "prior_mean_kind": posterior._prior_mean_kind,
        **tensors,
        "likelihood": likelihood_state(posterior.likelihood),
    }


def _aligned(posterior: GaussianPosterior, parameters: Mapping[str, Tensor]) -> GaussianTensors:
    """The tensors for these parameters, with the errors of :meth:`GaussianPosterior.align`."""
    check_shapes(posterior.mean, parameters)
    if posterior._just_loaded:
        check_loaded(posterior.mean, posterior.known, parameters)
    at_initial = posterior._prior_mean_kind == "initial"
    return posterior._tensors.aligned(parameters, posterior.prior_variance, at_initial)


def standard_normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Independent draws from N(0, 1), made on the generator's device."""
    device = like.device if generator is None else generator.device
    noise = torch.randn(like.shape, generator=generator, device=device, dtype=like.dtype)
    return noise.to(like.device)
