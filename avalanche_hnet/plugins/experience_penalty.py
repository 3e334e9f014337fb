"""The penalties of prior-focused learning, while one experience is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_hnet.core.common.quadratic import Quadratic
from avalanche_hnet.core.posterior.implicit import implicit_step
from avalanche_hnet.core.posterior.kronecker_implicit import (
    kronecker_implicit_step,
    names_of_exact_steps,
)
from avalanche_hnet.core.posterior.kronecker_term import KroneckerTerm
from avalanche_hnet.core.posterior.protocol import Posterior, Term

_NOTHING = Quadratic({}, {})


@dataclass(frozen=True, eq=False)
class ExperiencePenalty:
    """The prior and EWC as functions of a model's parameters, with the heads that they leave out.

    It is never changed, but replaced: by :meth:`with_strengths` and :meth:`after_backward`, or by
    a new one once the model has changed.

    Attributes:
        posterior: of the experiences before.
        parameters: of the model, by name.
        active: boolean masks of the elements that the experience's loss depends on, by name.
        n_samples: N, of the experience.
        dormant: names of other tasks' heads that lie at their posterior mean. As long as nothing
            moves them they must not get gradients, not even zeros: an optimizer's momentum would
            move them.
        implicit: names of parameters that feel the penalties in implicit steps; the others in the
            gradient of the loss.
        by_gradient: names of parameters that feel EWC there although they are among ``implicit``:
            of layers whose products have no implicit step.
        strengths: factors of the prior and of EWC; None before they are known.
        prior: the term of the prior, with its factor.
        ewc: the term of EWC, with its factor.
    """

    posterior: Posterior
    parameters: Mapping[str, nn.Parameter]
    active: Mapping[str, Tensor]
    n_samples: int
    dormant: frozenset[str]
    implicit: frozenset[str] = frozenset()
    by_gradient: frozenset[str] = frozenset()
    strengths: tuple[float, float] | None = None
    prior: Term = _NOTHING
    ewc: Term = _NOTHING

    @classmethod
    def of(
        cls,
        posterior: Posterior,
        parameters: Mapping[str, nn.Parameter],
        active: Mapping[str, Tensor],
        n_samples: int,
        implicit: frozenset[str] = frozenset(),
    ) -> ExperiencePenalty:
        """The penalty of an experience with N samples, for a posterior aligned to the model."""
        dormant = {
            name
            for name, mask in active.items()
            if not mask.any() and bool((parameters[name] == posterior.mean[name]).all())
        }
        return cls(posterior, parameters, active, n_samples, frozenset(dormant), implicit)

    def with_strengths(self, prior: float, ewc: float, optimizer: Optimizer) -> ExperiencePenalty:
        """The same with these factors, for an optimizer's next step; itself if it is that."""
        penalty = self
        if (prior, ewc) != self.strengths:
            penalty = replace(
                self,
                strengths=(prior, ewc),
                prior=self.posterior.prior_term(self.active, prior),
                ewc=self.posterior.ewc_term(ewc, skip=self.dormant),
            )
        return penalty._with_steps_of(optimizer)

    def _with_steps_of(self, optimizer: Optimizer) -> ExperiencePenalty:
        """The same for an optimizer's next step: RAdam's first ones are like SGD's."""
        if not (self.implicit and isinstance(self.ewc, KroneckerTerm)):
            return self
        exact = names_of_exact_steps(optimizer, self.parameters, self.ewc)
        by_gradient = frozenset(self.ewc.names_of_layers).difference(exact & self.implicit)
        return self if by_gradient == self.by_gradient else replace(self, by_gradient=by_gradient)

    @property
    def without_step(self) -> list[str]:
        """Names of trained parameters whose layers are why EWC has no implicit step for them."""
        own = self.by_gradient & self.implicit
        return [n for n, p in self.parameters.items() if n in own and p.requires_grad]

    def values(self) -> tuple[Tensor, Tensor]:
        """The prior and EWC at the parameters as they are now.

        Scalars that are differentiable by what feels no implicit steps.
        """
        return self._value(self.prior), self._value(self.ewc)

    def _value(self, term: Term) -> Tensor:
        if not self.implicit:
            return term(self.parameters)
        by_gradient = self._felt_in_gradient(term)
        if len(by_gradient) == len(term.names):
            return term(self.parameters)
        with torch.no_grad():
            value = term(self.parameters, skip=by_gradient)
        if not by_gradient:
            return value
        return value + term(self.parameters, skip=set(term.names).difference(by_gradient))

    def after_backward(self) -> ExperiencePenalty:
        """The same, but for heads that the loss (of replayed samples) has begun to move."""
        if all(self.parameters[name].grad is None for name in self.dormant):
            return self
        still = frozenset(n for n in self.dormant if self.parameters[n].grad is None)
        return replace(self, dormant=still, strengths=None)

    def after_step(self, optimizer: Optimizer) -> None:
        """The implicit steps, once the optimizer has made its own on the rest of the loss."""
        if not self.implicit:
            return
        for term in (self.prior, self.ewc):  # no element is in both
            skip = self._felt_in_gradient(term)
            if isinstance(term, KroneckerTerm):
                kronecker_implicit_step(optimizer, self.parameters, term, skip)
            elif isinstance(term, Quadratic):
                implicit_step(optimizer, self.parameters, term, skip)

    def _felt_in_gradient(self, term: Term) -> list[str]:
        """Names of parameters that feel a term in the gradient of the loss."""
        of_layers = self.by_gradient if isinstance(term, KroneckerTerm) else ()
        return [n for n in term.names if n not in self.implicit or n in of_layers]
