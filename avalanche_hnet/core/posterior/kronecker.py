"""A Gaussian posterior over a network's weights with a Kronecker product for each layer."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from avalanche_hnet.core.common.arguments import (
    at_least,
    count_or_all,
    fraction,
    generator_or_none,
    one_of,
)
from avalanche_hnet.core.common.checksums import CHECKSUMS, check_checksums, with_checksums
from avalanche_hnet.core.common.exchange import exchange
from avalanche_hnet.core.common.likelihoods import Likelihood, likelihood_state
from avalanche_hnet.core.common.quadratic import Quadratic
from avalanche_hnet.core.fisher.kronecker import kronecker_factors
from avalanche_hnet.core.fisher.kronecker_layer import KroneckerFisher
from avalanche_hnet.core.fisher.kronecker_sums import WeightSharing
from avalanche_hnet.core.fisher.options import FisherKind
from avalanche_hnet.core.posterior.gaussian import (
    GaussianPosterior,
    PriorMean,
    entries_of,
    standard_normal,
)
from avalanche_hnet.core.posterior.kronecker_checks import check_factors
from avalanche_hnet.core.posterior.kronecker_state import (
    check_own_state,
    layer_state,
    layers_from_state,
)
from avalanche_hnet.core.posterior.kronecker_term import KroneckerTerm, LayerTerm
from avalanche_hnet.core.posterior.kronecker_variance import kronecker_output_variance
from avalanche_hnet.core.posterior.layer_covariance import LayerCovariance
from avalanche_hnet.core.posterior.layer_products import LayerProducts, accumulated, products_of
from avalanche_hnet.core.posterior.low_rank import MaxRank, check_max_rank

Layers = dict[str, LayerProducts]


class KroneckerPosterior:
    """N(φ*, Λ⁻¹) over all weights φ trained so far, Λ with a Kronecker product for each layer.

    As :class:`GaussianPosterior`, of which it has the prior, the mean and what is known, but for a
    layer with weights W (K groups of O units by I inputs, the bias among them) its Λ is

        Λ = 1/σ² + Σ_t γ^(T−t) N_t A_t ⊗ G_t,

    A_t ⊗ G_t the Fisher of experience t (:func:`kronecker_factors`) between the units that were
    active in it. The sum is kept as its nearest product in the Frobenius norm, in memory that does
    not grow with the number of experiences. The prior stays apart, exact, and enters once.
    Parameters of no layer have a diagonal Λ, exactly as in :class:`GaussianPosterior`. So has,
    beside its product, what an experience says of a layer where it has no factors for it, or where
    the active elements of a layer are not some of its units by some of its inputs.

    None of its tensors is changed in place: each method makes new ones and exchanges all at once.

    Ritter et al. 2018, *Online structured Laplace approximations for overcoming catastrophic
    forgetting* (arXiv 1805.07810), with the prior and the masks made explicit, and the sum over
    experiences kept as by Van Loan & Pitsianis 1993.

    Attributes:
        prior_variance: σ².
        rank: how many products are kept for a layer; None for one for each experience.
        weight_sharing: how layers are treated whose weights several positions share.
        max_rank: so many leading eigenpairs at most, or as few as keep a share in (0, 1) of the
            trace, stand for A and G in :meth:`ewc_term`, with what is left of their diagonals, so
            that Λ's is exact; None for A and G as they are, which all else has, and the state.
        likelihood: that it was learned with, for predictions; None if not known. The state has
            it, unless it is of a user's own class.

    Raises:
        TypeError, ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        prior_variance: float = 1.0,
        prior_mean: PriorMean = "zero",
        rank: int | None = 1,
        weight_sharing: WeightSharing = "expand",
        max_rank: MaxRank = None,
    ) -> None:
        count_or_all(rank=rank)
        check_max_rank(max_rank)
        one_of(WeightSharing, weight_sharing=weight_sharing)
        self._parts = _Parts(GaussianPosterior(prior_variance, prior_mean), {})
        self.prior_variance = float(prior_variance)
        self.rank = rank
        self.max_rank = max_rank
        self.weight_sharing: WeightSharing = weight_sharing
        self.likelihood: Likelihood | None = None

    @property
    def mean(self) -> dict[str, Tensor]:
        """φ* by parameter name."""
        return self._parts.elements.mean

    @property
    def precision(self) -> dict[str, Tensor]:
        """The diagonal of Λ by parameter name."""
        diagonal = dict(self._parts.elements.precision)
        for layer in self._parts.layers.values():
            for name, of_products in layer.diagonal().items():
                diagonal[name] = diagonal[name] + of_products
        return diagonal

    @property
    def known(self) -> dict[str, Tensor]:
        """Boolean tensors by parameter name."""
        return self._parts.elements.known

    def align(self, parameters: Mapping[str, Tensor]) -> bool:
        """Take in parameters that are new, have grown, moved to another device, or left.

        See :meth:`GaussianPosterior.align`.

        Raises:
            ValueError: as there, and if a layer with groups has grown.
        """
        elements = copy(self._parts.elements)
        changed = elements.align(parameters)
        if changed:
            self._parts = _Parts(elements, _fitted(self._parts.layers, elements.mean))
        else:
            self._parts = self._parts._replace(elements=elements)
        return changed

    def forget(self) -> None:
        """Return to the prior: nothing is known any more."""
        elements = copy(self._parts.elements)
        elements.forget()
        self._parts = _Parts(elements, {})

    def prior_term(self, active: Mapping[str, Tensor], factor: float = 1.0) -> Quadratic:
        """1/(2σ²) Σ (φᵢ − μ₀ᵢ)² over the active elements that are not known, as a function of φ.

        See :meth:`GaussianPosterior.prior_term`.
        """
        return self._parts.elements.prior_term(active, factor)

    def ewc_term(self, factor: float = 1.0, skip: Container[str] = ()) -> KroneckerTerm:
        """½ (φ − φ*)ᵀ Λ (φ − φ*) over the known elements, as a function of φ.

        Args:
            factor: of the value.
            skip: names of parameters that are left out, as if they stood at φ*.
        """
        by_element = self._parts.elements.ewc_term(factor, skip)
        layers = [
            self._parts.layer_term(layer, by_element.names, factor)
            for layer in self._parts.layers.values()
            if not set(layer.layout.names).isdisjoint(by_element.names)
        ]
        rest = by_element.without({name for layer in layers for name in layer.names})
        return KroneckerTerm(layers, rest)

    def covariances(self) -> dict[str, LayerCovariance]:
        """Λ⁻¹ of each layer, by the layers' names, in the eigenbasis of its product.

        Exact for layers with one product, but for elements with a precision of their own beside it
        (see :class:`LayerCovariance`); for those with several it is that of the product that is
        nearest to their sum.
        """
        parts = self._parts
        return {
            name: LayerCovariance.of(layer, parts.precision_of(layer))
            for name, layer in parts.layers.items()
        }

    def fisher(
        self,
        model: nn.Module,
        batches: Iterable[Sequence[Tensor]],
        *,
        likelihood: Likelihood | None = None,
        kind: FisherKind = "empirical",
        max_samples: int | None = None,
        generator: torch.Generator | None = None,
    ) -> KroneckerFisher:
        """The Fisher for :meth:`update`: :func:`kronecker_factors` of these arguments."""
        return kronecker_factors(
            model,
            batches,
            likelihood=likelihood,
            kind=kind,
            weight_sharing=self.weight_sharing,
            max_samples=max_samples,
            generator=generator,
        )

    @torch.no_grad()
    def update(
        self,
        parameters: Mapping[str, Tensor],
        fisher: KroneckerFisher,
        n_samples: int,
        active: Mapping[str, Tensor],
        gamma: float = 1.0,
    ) -> None:
        """Take in an experience that has been trained on.

        Args:
            parameters: φ at the minimum, by name.
            fisher: the Fisher *averaged* over samples; what is missing is zero.
            n_samples: N, the number of samples of the experience.
            active: boolean masks by name; what is missing is inactive.
            gamma: γ, in [0, 1]: how much of the precision from earlier data is kept.

        Raises:
            TypeError, ValueError: if γ or N is out of range, a mask or the Fisher does not fit its
                parameters, or an active element's Fisher is negative or not finite. Nothing is
                changed then.
        """
        fraction(gamma=gamma)
        at_least(1, n_samples=n_samples)
        check_factors(parameters, fisher)
        elements = copy(self._parts.elements)
        elements.align(parameters)
        new, by_element = _taken_apart(fisher, n_samples, active, elements.mean)
        elements.update(parameters, by_element, n_samples, active, gamma)
        kept = _fitted(self._parts.layers, elements.mean) if gamma else {}
        layers = {
            name: accumulated(kept.get(name), new.get(name), gamma, self.rank, self.max_rank)
            for name in dict.fromkeys([*kept, *new])
        }
        self._parts = _Parts(elements, layers)

    def sample(self, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """One draw φ ~ N(φ*, Λ⁻¹), by parameter name; what is not known comes from the prior.

        As exact as :meth:`covariances`.

        Args:
            generator: makes the draw, on any device; PyTorch's global one by default.

        Raises:
            TypeError: if ``generator`` is something else.
        """
        generator_or_none(generator=generator)
        draw = self._parts.elements.sample(generator)
        for covariance in self.covariances().values():
            layout = covariance.layout
            noise = standard_normal(covariance.variances, generator)
            for name, change in layout.tensors(covariance.root_times(noise)).items():
                draw[name] = self.mean[name] + change
        return draw

    def output_variance(
        self,
        model: nn.Module,
        x: Any,
        task_label: int | None = None,
        is_needed: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Outputs of a model at the mean, and the variances of its linearisation, both (B, …).

        See :func:`~.kronecker_variance.kronecker_output_variance`.
        """
        variances = {n: p.reciprocal() for n, p in self._parts.elements.precision.items()}
        return kronecker_output_variance(
            model, self.covariances(), variances, x, task_label, is_needed
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything there is to know, with checksums, in plain containers for ``torch.save``."""
        entries = entries_of(self._parts.elements) | {
            "likelihood": likelihood_state(self.likelihood),
            "rank": self.rank,
            "weight_sharing": self.weight_sharing,
            "layers": {name: layer_state(layer) for name, layer in self._parts.layers.items()},
        }
        return with_checksums(entries)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the posterior of :meth:`state_dict`.

        Raises:
            ValueError: naming the entry, if ``state`` is not such a dictionary, has other settings,
                contradicts itself or was damaged. Nothing is changed then.
        """
        own = {"rank": self.rank, "weight_sharing": self.weight_sharing}
        check_own_state(state, own)
        elements = GaussianPosterior(self.prior_variance, self._parts.elements._prior_mean_kind)
        entries = {k: v for k, v in state.items() if k not in (*own, "layers", CHECKSUMS)}
        elements.load_state_dict(entries)
        layers = layers_from_state(state["layers"], elements.mean, self.max_rank)
        check_checksums(state)
        exchange(self, _parts=_Parts(elements, layers), likelihood=elements.likelihood)


class _Parts(NamedTuple):
    """What a posterior holds, as one value that is exchanged as a whole.

    Attributes:
        elements: the prior, the mean, what is known, and the precision by element: all of it for
            parameters of no layer, and without the products for those of layers.
        layers: the products by the names of layers.
    """

    elements: GaussianPosterior
    layers: Layers

    def layer_term(self, layer: LayerProducts, names: Container[str], factor: float) -> LayerTerm:
        """The layer's part of the EWC term, for those of its parameters that ``names`` has."""
        layout = layer.layout
        taking_part = tuple(name for name in layout.names if name in names)
        known = {
            n: k if n in taking_part else torch.zeros_like(k)
            for n, k in ((n, self.elements.known[n]) for n in layout.names)
        }
        mask = layout.matrices(known)
        return LayerTerm(
            layer,
            taking_part,
            layout.matrices(self.elements.mean),
            self.precision_of(layer),
            None if mask.all() else mask,
            factor,
        )

    def precision_of(self, layer: LayerProducts) -> float | Tensor:
        """What is added to the products: 1/σ², or (K, O, I) where there is more by element."""
        precision = layer.layout.matrices(self.elements.precision)
        prior = 1 / self.elements.prior_variance
        return prior if bool((precision == prior).all()) else precision


def _taken_apart(
    fisher: KroneckerFisher,
    n_samples: int,
    active: Mapping[str, Tensor],
    mean: Mapping[str, Tensor],
) -> tuple[Layers, dict[str, Tensor]]:
    """N times the products, and the Fisher of what has none, by element and averaged."""
    layers, by_element = {}, dict(fisher.diagonal)
    for name, factor in fisher.layers.items():
        if factor.layout.weight in mean:
            products = products_of(factor, n_samples, active, mean[factor.layout.weight])
            if products is None:
                by_element |= factor.diagonal()
            else:
                layers[name] = products
    return layers, by_element


def _fitted(layers: Layers, mean: Mapping[str, Tensor]) -> Layers:
    fitted = {name: layer.fitted(mean) for name, layer in layers.items()}
    return {name: layer for name, layer in fitted.items() if layer is not None}
