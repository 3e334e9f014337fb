"""A strategy that several processes train together, each on its share of the samples."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from avalanche_hnet.core.common.gradients import add_gradients
from avalanche_hnet.core.common.processes import are_several, n_processes, take_first, unwrapped


def model_of(strategy: SupervisedTemplate) -> nn.Module:
    """The strategy's model, without the wrapper that averages gradients over processes."""
    return unwrapped(strategy.model)


def require_wrapper(strategy: SupervisedTemplate) -> None:
    """Refuse several processes that would each train a model of their own.

    Raises:
        ValueError: if the model is not wrapped.
    """
    if are_several() and not isinstance(strategy.model, DistributedDataParallel):
        raise ValueError(
            f"{type(strategy.model).__name__} is trained by {n_processes()} processes, but not "
            "wrapped for it, so their weights would drift apart; give the strategy "
            "DistributedHelper.wrap_model(model), of avalanche.distributed.distributed_helper"
        )


def wrap_grown(strategy: SupervisedTemplate) -> None:
    """Wrap a model again that has grown, so that new heads are trained by all processes together.

    ``DistributedDataParallel`` knows the parameters that there are when it is made, and Avalanche
    0.6.0 leaves it at that: new ones would start from other values in each process, and drift.
    """
    wrapper = strategy.model
    if not _has_grown(wrapper):
        return
    strategy.model = DistributedDataParallel(
        wrapper.module,
        device_ids=wrapper.device_ids,
        output_device=wrapper.output_device,
        dim=wrapper.dim,
        broadcast_buffers=wrapper.broadcast_buffers,
        process_group=wrapper.process_group,
        find_unused_parameters=wrapper.find_unused_parameters,
        gradient_as_bucket_view=wrapper.gradient_as_bucket_view,
        static_graph=wrapper.static_graph,
    )


def model_with_shared_heads(strategy: SupervisedTemplate) -> nn.Module:
    """The strategy's model; heads that an evaluation has added are as in the main process."""
    wrapper = strategy.model
    if _has_grown(wrapper):
        known = {id(p) for p in wrapper._module_parameters}
        take_first([p for p in wrapper.parameters() if id(p) not in known])
    return unwrapped(wrapper)


def kept_apart(prior: Tensor, ewc: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
    """Penalties that several processes leave out of the gradient that they average.

    Each has the same ones, and a head that no sample of a mini-batch uses may feel them, which
    ``DistributedDataParallel`` does not expect.

    Returns:
        Their sum, for :func:`add_gradient`, and both as constants; None and both as they are, if
        there is a single process.
    """
    if not are_several():
        return None, prior, ewc
    return prior + ewc, prior.detach(), ewc.detach()


def add_gradient(value: Tensor | None, parameters: Iterable[nn.Parameter]) -> None:
    """Add the gradient of a value, if there is one, to the parameters' ``grad``."""
    if value is None or not value.requires_grad:
        return
    trained = {str(n): p for n, p in enumerate(parameters) if p.requires_grad}
    found = torch.autograd.grad(value, [*trained.values()], allow_unused=True)
    pairs = zip(trained, found, strict=True)
    add_gradients(trained, {n: gradient for n, gradient in pairs if gradient is not None})


def _has_grown(model: nn.Module) -> bool:
    """Whether it is wrapped, and has other parameters than when it was."""
    if not isinstance(model, DistributedDataParallel):
        return False
    return {id(p) for p in model._module_parameters} != {id(p) for p in model.parameters()}
