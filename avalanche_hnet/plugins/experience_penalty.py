"""The penalties of prior-focused learning, while one experience is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_hnet.core.common.quadratic import Quadratic
from avalanche_hnet.core.posterior.gaussian import GaussianPosterior
from avalanche_hnet.core.posterior.implicit import implicit_step

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
        strengths: factors of the prior and of EWC; None before they are known.
        prior: the term of the prior, with its factor.
        ewc: the term of EWC, with its factor.
    """

    posterior: GaussianPosterior
    parameters: Mapping[str, nn.Parameter]
    active: Mapping[str, Tensor]
    n_samples: int
    dormant: frozenset[str]
    implicit: frozenset[str] = frozenset()
    strengths: tuple[float, float] | None = None
    prior: Quadratic = _NOTHING
    ewc: Quadratic = _NOTHING

    @classmethod
    def of(
        cls,
        posterior: GaussianPosterior,
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

    def with_strengths(self, prior: float, ewc: float) -> ExperiencePenalty:
        """The same with these factors; itself if it has them already."""
        if (prior, ewc) == self.strengths:
            return self
        return replace(
            self,
            strengths=(prior, ewc),
            prior=self.posterior.prior_term(self.active, prior),
            ewc=self.posterior.ewc_term(ewc, skip=self.dormant),
        )

    def values(self) -> tuple[Tensor, Tensor]:
        """The prior and EWC at the parameters as they are now.

        Scalars that are differentiable by what feels no implicit steps.
        """
        return self._value(self.prior), self._value(self.ewc)

    def _value(self, term: Quadratic) -> Tensor:
        if not self.implicit:
            return term(self.parameters)
        by_gradient = self._by_gradient(term)
        if len(by_gradient) == len(term.names):
            return term(self.parameters)
        with torch.no_grad():
            value = term(self.parameters, skip=by_gradient)
        return value + term(self.parameters, skip=self.implicit) if by_gradient else value

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
            implicit_step(optimizer, self.parameters, term, skip=self._by_gradient(term))

    def _by_gradient(self, term: Quadratic) -> list[str]:
        """Names of parameters that feel a term in the gradient of the loss."""
        return [name for name in term.names if name not in self.implicit]
