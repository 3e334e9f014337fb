"""Which states a diagonal Gaussian posterior refuses to become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from avalanche_hnet.core.common.state_entries import check_keys, check_tensors


def check_state(state: Any, current: Mapping[str, Any]) -> None:
    """Refuse what is not the state of a posterior under the same prior.

    Args:
        state: to be loaded.
        current: the state of the posterior that would load it.

    Raises:
        ValueError: naming the entry that is missing, of another kind, or contradicts another.
    """
    if isinstance(state, Mapping) and "layers" in state:
        raise ValueError(
            "state must be that of a GaussianPosterior, but has 'layers': it is of "
            "structure='kronecker', a KroneckerPosterior"
        )
    check_keys("state", state, current, optional=["likelihood"])  # which older states lack
    for argument, key in (("prior_variance", "prior_variance"), ("prior_mean", "prior_mean_kind")):
        if isinstance(state[key], Tensor) or state[key] != current[key]:
            raise ValueError(
                f"state was made with {argument}={state[key]!r}, but this posterior has "
                f"{current[key]!r}"
            )
    mean = check_tensors("state['mean']", state["mean"])
    for field in ("prior_mean", "precision"):
        check_tensors(f"state[{field!r}]", state[field])
    check_tensors("state['known']", state["known"], dtypes=[torch.bool])
    for field in ("prior_mean", "precision", "known"):
        shapes = {n: t.shape for n, t in state[field].items()}
        if shapes != {n: t.shape for n, t in mean.items()}:
            raise ValueError(f"state[{field!r}] must have the names and shapes of state['mean']")
    for name in mean:
        _check_parameter(name, state, current["prior_variance"], current["prior_mean_kind"])


def _check_parameter(
    name: str, state: Mapping[str, Any], prior_variance: float, prior_mean_kind: str
) -> None:
    prior_mean, mean, precision, known = (
        state[field][name] for field in ("prior_mean", "mean", "precision", "known")
    )
    for field, tensor in (("prior_mean", prior_mean), ("precision", precision)):
        if tensor.dtype != mean.dtype:
            raise ValueError(
                f"state[{field!r}][{name!r}] must be of the type of state['mean'][{name!r}], "
                f"{mean.dtype}, got {tensor.dtype}"
            )
    if prior_mean_kind == "zero" and prior_mean.any():
        raise ValueError(f"state['prior_mean'][{name!r}] must be zero for prior_mean='zero'")
    least = 1 / prior_variance
    rounding = max(1e-5, 2 * torch.finfo(mean.dtype).eps)  # it may have had another type
    if mean.numel() and precision.min() < least * (1 - rounding):
        raise ValueError(
            f"state['precision'][{name!r}] must be at least that of the prior, {least:.6g}, but "
            f"has {float(precision.min()):.6g}"
        )
    unknown = ~known
    if not torch.equal(mean[unknown], prior_mean[unknown]):
        raise ValueError(
            f"state['known'][{name!r}] says that elements are not known of which "
            f"state['mean'][{name!r}] is not that of the prior"
        )
    if mean.numel() and (precision[unknown] > least * (1 + rounding)).any():
        raise ValueError(
            f"state['known'][{name!r}] says that elements are not known of which "
            f"state['precision'][{name!r}] is not that of the prior"
        )
