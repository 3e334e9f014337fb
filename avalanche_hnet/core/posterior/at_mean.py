"""A model at the mean of the posterior over its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy

import torch
from torch import nn

from avalanche_hnet.core.common.evaluation import evaluating, usable
from avalanche_hnet.core.posterior.gaussian_tensors import fits
from avalanche_hnet.core.posterior.protocol import Posterior


def fitted(posterior: Posterior, model: nn.Module) -> Posterior:
    """The posterior, with the prior for what the model has gained since, as heads in evaluation.

    Raises:
        ValueError: if the posterior is empty or that of another model.
    """
    if not posterior.mean:
        raise ValueError("posterior is empty: no experience has been trained with it yet")
    parameters = dict(model.named_parameters())
    missing = posterior.mean.keys() - parameters.keys()
    if missing:
        raise ValueError(
            f"posterior holds {min(missing)!r}, which the model does not have; it must be the "
            "posterior of this model"
        )
    new = {n for n, p in parameters.items() if p.requires_grad} - posterior.mean.keys()
    if not new and all(fits(mean, parameters[n]) for n, mean in posterior.mean.items()):
        return posterior
    larger = copy(posterior)  # whose tensors are exchanged, not changed
    larger.align(parameters)
    return larger


@contextmanager
def at_mean(model: nn.Module, posterior: Posterior) -> Iterator[None]:
    """Evaluation mode, and the posterior's mean in place of the model's parameters.

    Gradients are on inside, in inference mode as well.
    """
    parameters = dict(model.named_parameters())
    before = {n: (parameters[n].data, parameters[n].requires_grad) for n in posterior.mean}
    fused_attention = torch.backends.mha.get_fastpath_enabled()  # which has no jvp
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model.modules()):
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            for name, mean in posterior.mean.items():
                parameters[name].data = usable(mean.to(parameters[name].dtype))
                parameters[name].requires_grad_(True)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused_attention)
            for name, (data, requires_grad) in before.items():
                parameters[name].data = data
                parameters[name].requires_grad_(requires_grad)
