"""Elastic weight consolidation of the hypernetwork's own weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from avalanche_hnet.core.common.arguments import at_least, fraction
from avalanche_hnet.core.common.checksums import check_checksums, with_checksums
from avalanche_hnet.core.fisher.kronecker_sums import WeightSharing
from avalanche_hnet.core.hypernetworks.network import HyperNetwork
from avalanche_hnet.core.posterior.low_rank import MaxRank
from avalanche_hnet.core.posterior.protocol import Posterior, Term
from avalanche_hnet.core.posterior.structure import Structure, make_posterior
from avalanche_hnet.core.regularizers.base import Experience, FisherSource, Penalty, Regularizer
from avalanche_hnet.core.regularizers.differentiate import gradients_or_none
from avalanche_hnet.core.regularizers.earlier_experience import (
    EarlierExperience,
    Fisher,
    experiences_from_state,
)


@dataclass(frozen=True, eq=False)
class Terms:
    """The penalty of one experience, 1/N [prior + β Σ earlier].

    Attributes:
        n_samples: N, its number of samples.
        prior: 1/(2σ²) Σ_i θ_i² over what is not known yet.
        earlier: ½ (θ − θ*)ᵀ Λ (θ − θ*), one or one for each earlier experience.
    """

    n_samples: int
    prior: Term
    earlier: tuple[Term, ...]


class EWC(Regularizer):
    """1/N [prior + β/2 Σ_i Λ_i (θ_i − θ*_i)²], with the posterior of :class:`GaussianPosterior`.

    The baseline of von Oswald et al. 2020 (arXiv 1906.00695): nothing looks at what is generated.
    N is the number of samples of the experience, and the prior N(0, σ²) enters in the first one.
    Not online (Kirkpatrick et al. 2017), every experience t keeps a penalty of its own,
    1/N [1/(2σ²) Σ_i θ_i² + β/2 Σ_t Σ_i N_t F_ti (θ_i − θ*_ti)²], so memory grows with their number.

    With ``structure="kronecker"`` the sum is (θ − θ*)ᵀ Λ (θ − θ*), Λ with a Kronecker product for
    each hidden layer that is linear, as in :class:`KroneckerPosterior` (not online, N_t A_t ⊗ G_t
    for each experience). The gradient of a sample by such a layer is a sum of products over chunks,
    which are its positions; with one chunk the product of a single task is its Fisher, exactly. The
    layer that generates the weights, whose G would be of the size of a chunk squared, embeddings of
    chunks, and layers under spectral normalisation keep their diagonal.

    Args:
        beta: strength β; 1 is the Bayesian update.
        gamma: γ in [0, 1], how much of the precision from data is kept at each experience.
        online: keep one posterior rather than one penalty per experience.
        n_fisher: number of samples for the Fisher, drawn at random; all by default.
        prior_variance: σ².
        structure: ``"diagonal"`` or ``"kronecker"``, see above.
        rank: of ``"kronecker"``, online: how many products are kept for a layer; None for one for
            each experience.
        weight_sharing: of ``"kronecker"``: ``"expand"`` or ``"reduce"``, how chunks are treated,
            see :func:`kronecker_factors`.
        max_rank: of ``"kronecker"``: a cheaper penalty, see :class:`KroneckerPosterior`.

    Attributes:
        posterior: the :class:`GaussianPosterior` or :class:`KroneckerPosterior`, if online.

    Raises:
        TypeError, ValueError: if an argument is out of its range or contradicts another.
    """

    needs_fisher = True
    is_log_prior = True

    def __init__(
        self,
        beta: float = 1.0,
        *,
        gamma: float = 1.0,
        online: bool = True,
        n_fisher: int | None = None,
        prior_variance: float = 1.0,
        structure: Structure = "diagonal",
        rank: int | None = 1,
        weight_sharing: WeightSharing = "expand",
        max_rank: MaxRank = None,
    ) -> None:
        super().__init__(beta)
        fraction(gamma=gamma)
        if gamma != 1 and not online:
            raise ValueError(f"gamma={gamma} needs online=True: nothing decays otherwise")
        if rank != 1 and not online:
            raise ValueError(
                f"rank={rank} needs online=True: otherwise each experience has a product of its own"
            )
        if n_fisher is not None:
            at_least(1, n_fisher=n_fisher)
        self.gamma = gamma
        self.online = online
        self.n_fisher = n_fisher
        self.structure: Structure = structure
        self.posterior: Posterior = make_posterior(
            structure,
            prior_variance,
            rank=rank,
            weight_sharing=weight_sharing,
            max_rank=max_rank,
        )
        self._max_rank: MaxRank = max_rank
        self._experiences: list[EarlierExperience] = []
        self._terms: Terms | None = None

    def before_experience(self, hypernetwork: HyperNetwork, experience: Experience) -> None:
        """Make the terms of the penalty, which stay the same during the experience."""
        super().before_experience(hypernetwork, experience)
        parameters = hypernetwork.shared_parameters()
        self.posterior.align(parameters)
        everything = {n: torch.ones_like(p, dtype=torch.bool) for n, p in parameters.items()}
        device = hypernetwork.output.weight.device
        self._terms = Terms(
            n_samples=experience.n_samples,
            # Where there is a penalty per experience, the prior is in none of them.
            prior=self.posterior.prior_term(everything),
            earlier=(
                (self.posterior.ewc_term(),)
                if self.online
                else tuple(experience.term(device) for experience in self._experiences)
            ),
        )

    @property
    def knows_nothing(self) -> bool:
        """Whether no experience has been taken in."""
        known = self.posterior.known.values()
        return not (self._experiences or any(k.any() for k in known))

    @property
    def is_active(self) -> bool:
        """Whether the strength is positive: before the first task there is the prior."""
        return self.beta > 0

    def penalty(
        self,
        parameters: Mapping[str, Tensor],
        change: Mapping[str, Tensor] | None = None,
        *,
        through_change: bool = False,
    ) -> Penalty:
        """The penalty at ``parameters`` and its gradient; ``change`` does not enter."""
        shared = self._required_hypernetwork().shared_parameters()
        frozen = shared.keys() - parameters.keys()
        terms = self._terms
        assert terms is not None
        leaves = {n: p.detach().requires_grad_() for n, p in parameters.items()}
        with torch.enable_grad():
            # A layer's matrix takes all of its parameters, even frozen ones.
            values = {**shared, **leaves}
            earlier = [term(values, skip=frozen) for term in terms.earlier]
            value = terms.prior(values, skip=frozen) + self.beta * sum(earlier)
            value = value / terms.n_samples
            gradients = gradients_or_none(value, [*leaves.values()])
        by_name = zip(leaves.items(), gradients, strict=True)
        return Penalty(
            value.detach(),
            {n: torch.zeros_like(p) if g is None else g for (n, p), g in by_name},
            {},
        )

    def after_experience(self, source: FisherSource, tasks: tuple[int, ...]) -> None:
        """Compute the Fisher of θ and take it in."""
        parameters = self._required_hypernetwork().shared_parameters()
        fisher: Fisher
        if self.structure == "kronecker":
            compute = self.posterior.fisher
            fisher = source.factors_of_shared_parameters(compute, self.n_fisher)
        else:
            fisher = source.of_shared_parameters(self.n_fisher)
        if self.online:
            everything = {n: torch.ones_like(p, dtype=torch.bool) for n, p in parameters.items()}
            self.posterior.update(parameters, fisher, source.n_samples, everything, self.gamma)
        else:
            earlier = EarlierExperience.of(fisher, source.n_samples, parameters, self._max_rank)
            self._experiences = [*self._experiences, earlier]

    def state_dict(self) -> dict[str, Any]:
        """The posterior, or all penalties."""
        return with_checksums(
            {
                **super().state_dict(),
                "online": self.online,
                "posterior": self.posterior.state_dict(),
                "experiences": [experience.state_dict() for experience in self._experiences],
            }
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the regulariser of :meth:`state_dict`."""
        super().load_state_dict(state)
        if state["online"] is not self.online:
            raise ValueError(
                f"state was made with online={state['online']}, but this regulariser has "
                f"online={self.online}"
            )
        earlier = experiences_from_state(state["experiences"], self._max_rank)
        if self.online and earlier:
            raise ValueError("state['experiences'] must be empty with online=True")
        check_checksums(state)
        self.posterior.load_state_dict(state["posterior"])
        self._experiences = earlier
