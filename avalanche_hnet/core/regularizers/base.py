"""What all regularisers of hypernetworks have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from avalanche_hnet.core.common.arguments import not_negative
from avalanche_hnet.core.common.checksums import with_checksums
from avalanche_hnet.core.common.state_entries import check_keys
from avalanche_hnet.core.fisher.kronecker_layer import KroneckerFisher
from avalanche_hnet.core.hypernetworks.network import HyperNetwork
from avalanche_hnet.core.regularizers.lookahead import Lookahead


class Penalty(NamedTuple):
    """A regulariser's value and gradients, its strength β included.

    Attributes:
        value: a scalar without graph.
        gradients: with respect to the parameters, by name, the change Δ held constant.
        change_gradients: with respect to Δ, by name; empty unless asked for.
    """

    value: Tensor
    gradients: dict[str, Tensor]
    change_gradients: dict[str, Tensor]

    def scaled(self, factor: float) -> Penalty:
        """All of it multiplied by a number."""
        return Penalty(
            factor * self.value,
            {n: factor * g for n, g in self.gradients.items()},
            {n: factor * g for n, g in self.change_gradients.items()},
        )


class FisherSource(Protocol):
    """Computes Fisher values on the samples of an experience that has been trained on."""

    n_samples: int

    def of_shared_parameters(self, max_samples: int | None) -> Mapping[str, Tensor]:
        """Mean squared gradients of θ, by name, from at most ``max_samples`` samples."""

    def factors_of_shared_parameters(
        self, fisher: Callable[..., KroneckerFisher], max_samples: int | None
    ) -> KroneckerFisher:
        """The Fisher of θ, averaged over samples, with Kronecker products for layers.

        Args:
            fisher: computes it for a model, as :func:`kronecker_factors` does.
            max_samples: use at most so many samples.
        """

    def of_weights(self, task: int, max_samples: int | None) -> Tensor:
        """Mean squared gradients (W,) of the weights generated for a task of the experience."""


@dataclass(frozen=True)
class Experience:
    """What a regulariser must know about the experience that comes next.

    Attributes:
        protected: numbers of the tasks that were learned and are not in the experience.
        n_samples: number of samples of the experience.
        owners: (W,), for each weight the task for which it counts, ``SHARED`` or ``UNUSED``; None
            if the tasks' output units are not told apart.
    """

    protected: tuple[int, ...]
    n_samples: int
    owners: Tensor | None = None


class Regularizer(ABC):
    """A penalty on changes of a hypernetwork, of strength ``beta``.

    The second term of the loss in von Oswald et al. 2020 (arXiv 1906.00695), equation 2.

    A strategy calls :meth:`before_experience`, then in each iteration :meth:`penalty`, then
    :meth:`after_experience`. State is kept for one hypernetwork only.

    Attributes:
        beta: strength β; 0 turns the regulariser off.
        lookahead: the Δ that :meth:`penalty` expects: the step that the optimizer is about to
            take (``"optimizer"``), a step along the negative gradient (``"sgd"``), or None.
        differentiable_lookahead: whether the gradient flows through Δ.
        train_previous_embeddings: whether embeddings of protected tasks are trained, too.
        mask_heads: whether only the weights of a task's own output units are protected.
        needs_fisher: whether :meth:`after_experience` computes Fisher values.
        is_log_prior: whether the penalty is in units of the mean negative log-likelihood, so that
            it has to be multiplied by what the criterion is multiplied by.

    Raises:
        ValueError: if ``beta`` is negative or not finite.
    """

    lookahead: Lookahead | None = None
    differentiable_lookahead: bool = False
    train_previous_embeddings: bool = False
    mask_heads: bool = False
    needs_fisher: bool = False
    is_log_prior: bool = False
    _optional_entries: tuple[str, ...] = ()
    """Of a state, which has them only sometimes."""

    def __init__(self, beta: float) -> None:
        not_negative(beta=beta)
        self.beta = float(beta)
        self._hypernetwork: HyperNetwork | None = None

    def before_experience(self, hypernetwork: HyperNetwork, experience: Experience) -> None:
        """Remember the hypernetwork as it is now.

        Raises:
            ValueError: if this regulariser has been used with another hypernetwork.
        """
        self.require(hypernetwork)
        self._hypernetwork = hypernetwork

    def require(self, hypernetwork: HyperNetwork) -> None:
        """Check that this regulariser belongs to ``hypernetwork`` or to none yet.

        Raises:
            ValueError: if this regulariser has been used with another hypernetwork.
        """
        if self._hypernetwork is not None and self._hypernetwork is not hypernetwork:
            raise ValueError(
                f"this {type(self).__name__} regulariser belongs to another hypernetwork; make a "
                "new one for each"
            )

    def _required_hypernetwork(self) -> HyperNetwork:
        if self._hypernetwork is None:
            raise RuntimeError("before_experience must be called first")
        return self._hypernetwork

    @property
    def knows_nothing(self) -> bool:
        """Whether state that is needed to protect earlier tasks is missing."""
        return False

    @property
    @abstractmethod
    def is_active(self) -> bool:
        """Whether there is anything to penalise in this experience."""

    @abstractmethod
    def penalty(
        self,
        parameters: Mapping[str, Tensor],
        change: Mapping[str, Tensor] | None = None,
        *,
        through_change: bool = False,
    ) -> Penalty:
        """The penalty at ``parameters`` and its gradient.

        Args:
            parameters: those of the hypernetwork that are trained, by name: θ, and the embeddings
                of protected tasks if they are.
            change: Δ, the change that they are about to make, by name; what is missing is zero.
            through_change: compute the gradient with respect to Δ, too.
        """

    def after_experience(self, source: FisherSource, tasks: tuple[int, ...]) -> None:  # noqa: B027
        """Take in an experience of ``tasks`` that has been trained on."""

    def state_dict(self) -> dict[str, Any]:
        """What is carried from one experience to the next, with checksums."""
        return with_checksums({"kind": type(self).__name__})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the regulariser of :meth:`state_dict`, before the next experience.

        Raises:
            ValueError: naming the entry, if ``state`` was made by another kind of regulariser,
                contradicts itself or was damaged. Nothing is changed then.
        """
        optional = self._optional_entries
        check_keys("state", state, [*self.state_dict(), *optional], optional)
        if not isinstance(state["kind"], str) or state["kind"] != type(self).__name__:
            raise ValueError(
                f"state was made by {state['kind']}, but this is {type(self).__name__}"
            )
