"""Likelihoods as plain values and tensors, for ``torch.save``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from avalanche_hnet.core.common.likelihoods.base import Likelihood
from avalanche_hnet.core.common.likelihoods.bernoulli import Bernoulli
from avalanche_hnet.core.common.likelihoods.categorical import Categorical
from avalanche_hnet.core.common.likelihoods.gaussian import Gaussian

_KINDS: dict[str, type[Likelihood]] = {c.__name__: c for c in (Categorical, Gaussian, Bernoulli)}


def likelihood_state(likelihood: Likelihood | None) -> dict[str, Any] | None:
    """Name and arguments; None for None and for likelihoods of a user's own."""
    if type(likelihood) not in _KINDS.values():
        return None
    return {"kind": type(likelihood).__name__, "arguments": dict(vars(likelihood))}


def likelihood_from_state(state: Mapping[str, Any] | None) -> Likelihood | None:
    """The likelihood of :func:`likelihood_state`.

    Raises:
        ValueError: for one of another kind, or with other arguments.
    """
    if state is None:
        return None
    if not isinstance(state, Mapping) or state.keys() != {"kind", "arguments"}:
        raise ValueError(f"likelihood must be a dictionary of 'kind' and 'arguments', got {state}")
    if not isinstance(state["kind"], str) or state["kind"] not in _KINDS:
        raise ValueError(f"likelihood must be one of {sorted(_KINDS)}, got {state['kind']!r}")
    try:
        return _KINDS[state["kind"]](**state["arguments"])
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"likelihood has arguments that do not fit it: {error}") from error
