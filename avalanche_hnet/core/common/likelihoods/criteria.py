"""The likelihood that a criterion stands for."""

from __future__ import annotations

import re

from torch import nn

from avalanche_hnet.core.common.likelihoods.base import Likelihood
from avalanche_hnet.core.common.likelihoods.bernoulli import Bernoulli
from avalanche_hnet.core.common.likelihoods.categorical import Categorical
from avalanche_hnet.core.common.likelihoods.criterion_class import as_module
from avalanche_hnet.core.common.likelihoods.gaussian import Gaussian

_CRITERIA: dict[type[Likelihood], tuple[type[nn.Module], ...]] = {
    Categorical: (nn.CrossEntropyLoss, nn.NLLLoss),
    Gaussian: (nn.MSELoss,),
    Bernoulli: (nn.BCEWithLogitsLoss,),
}
_READABLE = tuple(criterion for criteria in _CRITERIA.values() for criterion in criteria)


def likelihood_of(criterion: object) -> Likelihood | None:
    """The likelihood that one of PyTorch's criteria stands for; None for any other.

    Functions of ``torch.nn.functional`` are read like their classes.

    Raises:
        TypeError: if the criterion is a class.
        ValueError: if the criterion is not reduced to one number.
    """
    if isinstance(criterion, type):
        name = criterion.__name__
        raise TypeError(f"criterion must be {name}(), got the class {name} itself")
    criterion = as_module(criterion)
    if isinstance(criterion, _READABLE) and criterion.reduction == "none":
        raise ValueError("criterion must have reduction='mean' or 'sum', got 'none'")
    if isinstance(criterion, nn.MSELoss):
        return Gaussian()
    if isinstance(criterion, nn.BCEWithLogitsLoss):
        return Bernoulli(pos_weight=criterion.pos_weight, weight=criterion.weight)
    if isinstance(criterion, (nn.CrossEntropyLoss, nn.NLLLoss)):
        return Categorical(
            class_weights=criterion.weight,
            label_smoothing=getattr(criterion, "label_smoothing", 0.0),
            ignore_index=criterion.ignore_index,
        )
    return None


def resolve_likelihood(likelihood: Likelihood | None, criterion: object) -> Likelihood:
    """The likelihood of which ``criterion`` is (a multiple of) the mean negative logarithm.

    Args:
        likelihood: what the user says it is, or None to read it off the criterion.
        criterion: the training loss.

    Raises:
        ValueError: if the two contradict each other, or the criterion alone does not tell,
            naming what would be accepted.
    """
    read = likelihood_of(criterion)
    if likelihood is None:
        if read is None:
            raise ValueError(_unknown(criterion))
        return read
    if read is None:
        return likelihood
    is_other = type(likelihood) in _CRITERIA and type(likelihood) is not type(read)
    # Weights and smoothing can be left out of the Fisher; which samples count cannot.
    counts_others = (
        isinstance(likelihood, Categorical)
        and isinstance(read, Categorical)
        and likelihood.ignore_index != read.ignore_index
    )
    if is_other or counts_others:
        raise ValueError(
            f"likelihood {likelihood!r} does not go with criterion {criterion!r}, which is read "
            f"as {read!r}; leave likelihood out"
        )
    return likelihood


def _unknown(criterion: object) -> str:
    hint = "; use BCEWithLogitsLoss on logits" if isinstance(criterion, nn.BCELoss) else ""
    name = re.sub(" at 0x[0-9a-f]+", "", repr(criterion))
    return (
        "criterion must be CrossEntropyLoss, NLLLoss, MSELoss or BCEWithLogitsLoss to know the "
        f"likelihood from it, got {name}{hint}; pass likelihood=Categorical(), "
        "likelihood=Gaussian(noise_std) or likelihood=Bernoulli() to say which likelihood the "
        "criterion stands for"
    )
