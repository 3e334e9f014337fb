"""Parameters that took another's place between two experiences."""

from __future__ import annotations

from collections.abc import Mapping
from weakref import ref

from torch import Tensor, nn

from avalanche_hnet.core.posterior.gaussian_checks import is_at_mean
from avalanche_hnet.core.posterior.protocol import Posterior

Remembered = Mapping[str, "ref[nn.Parameter]"]


def remember(model: nn.Module) -> Remembered:
    """The parameters that a model has now, by name, without keeping them alive."""
    return {name: ref(parameter) for name, parameter in model.named_parameters()}


def refuse_replaced(posterior: Posterior, model: nn.Module, before: Remembered) -> None:
    """Check that what the posterior knows is still where it was.

    A parameter may be the same object, whatever its values, or another that starts with the rows
    of the old one, as a classifier that has grown. One that has gone may only have been removed.

    Args:
        posterior: after the latest experience.
        model: before the next one.
        before: of :func:`remember` after the latest experience; others are not checked.

    Raises:
        ValueError: naming a parameter that has been replaced, has shrunk or has moved.
    """
    parameters = dict(model.named_parameters())
    strangers = {n: p.detach() for n, p in parameters.items() if n not in posterior.mean}
    for name, mean in posterior.mean.items():
        known = posterior.known[name]
        if name not in before or not known.any():
            continue
        parameter = parameters.get(name)
        if parameter is None:
            _refuse_moved(name, mean, strangers)
        elif parameter is not before[name]() and not _holds(parameter.detach(), mean, known):
            raise ValueError(
                f"the model's {name!r} is another parameter than the one that was trained, of "
                f"shape {tuple(parameter.shape)} where the posterior has {tuple(mean.shape)}, and "
                "does not start with its values; keep the module, or let it grow in dimension 0 "
                "and copy the old rows in their order (as IncrementalClassifier does), or begin "
                "with a new PriorEWCPlugin"
            )


def _holds(parameter: Tensor, mean: Tensor, known: Tensor) -> bool:
    """Whether the parameter, or its first rows, are the mean's where that is known."""
    rows = parameter[: len(mean)] if mean.dim() and parameter.dim() else parameter
    return rows.shape == mean.shape and is_at_mean(parameter, mean, known)


def _refuse_moved(name: str, mean: Tensor, strangers: Mapping[str, Tensor]) -> None:
    """Refuse a parameter that has gone, if a new one has its first row."""
    if mean.dim() < 2 or not mean[0].any():
        return
    for new_name, parameter in strangers.items():
        has_shape = parameter.shape[1:] == mean.shape[1:]
        if has_shape and (parameter.to(mean) == mean[:1]).flatten(1).all(1).any():
            raise ValueError(
                f"the model has no {name!r} any more; what was trained there is now in "
                f"{new_name!r}, where the posterior would not protect it; keep the names of "
                "parameters and the order of their rows, or begin with a new PriorEWCPlugin"
            )
