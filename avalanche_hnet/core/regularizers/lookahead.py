"""The step that an optimizer is about to make."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from avalanche_hnet.core.common.optimizers import parameters_of
from avalanche_hnet.core.regularizers import adam_step

Lookahead = Literal["optimizer", "sgd"]
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
# PyTorch wraps each class's step in this, to call the hooks, those of all optimizers included.
_CALLS_HOOKS = Optimizer.profile_hook_step(lambda self: None).__code__
Gradients = Mapping[Any, Tensor]  # by parameter; Any because the keys of a Mapping are invariant


def optimizer_step(
    optimizer: Optimizer, gradients: Gradients | None = None, *, differentiable: bool = False
) -> dict[Tensor, Tensor]:
    """Δp = step(p, g) − p: what ``optimizer.step()`` would add to each parameter p.

    Nothing is touched: the class's own ``step`` runs on copies of the parameters, gradients and
    memory, so that Δ is exact for optimizers of any kind. (For Adam there is a formula, which takes
    half the time.) Hooks on the step are left out. This is the Δθ in the regulariser of von Oswald
    et al. 2020 (arXiv 1906.00695).

    Args:
        optimizer: it may have taken steps already and be under a learning-rate scheduler.
        gradients: g by parameter, by default each ``p.grad``. Parameters without one are skipped.
        differentiable: whether Δ is a function of ``gradients`` and parameters for autograd. The
            optimizer's memory is constant. Where g is zero and Adam's like have a kink, the
            derivative is zero.

    Returns:
        Δp by parameter, of p's shape, for those with a gradient; without a graph unless
        ``differentiable``.

    Raises:
        ValueError: if the step needs a closure, a gradient does not fit a parameter of the
            optimizer, or ``differentiable`` is asked of a class without such an option.
    """
    step = _bare_step(optimizer)
    given = _gradients(optimizer, gradients)
    if not differentiable and adam_step.is_plain(optimizer, given):
        return adam_step.changes(optimizer, given)
    gpus = {p.device.index for p in given if p.is_cuda}
    with torch.set_grad_enabled(differentiable), torch.random.fork_rng(gpus):
        memo: dict[int, Any] = {
            id(p): _stand_in(p, given.get(p), differentiable)
            for group in optimizer.param_groups
            for p in group["params"]
        }
        news = [memo[id(p)] for p in given]
        twin = _twin(optimizer, memo)
        twin.defaults["differentiable"] = differentiable  # this switches autograd on in the step
        if not given:
            return {}
        if not differentiable:
            step(twin)
            torch._foreach_sub_(news, list(given))
            return {p: new.detach() for p, new in zip(given, news, strict=True)}

        for group in twin.param_groups:
            group.update(foreach=False, fused=False, capturable=False, differentiable=True)
        histories = [new.grad_fn for new in news]
        with _NoDetach():
            step(twin)
        tracked = any(t.requires_grad for pair in given.items() for t in pair)
        if tracked and all(n.grad_fn is h for n, h in zip(news, histories, strict=True)):
            raise ValueError(
                "differentiable=True needs an optimizer whose step autograd can follow, like SGD "
                f"or Adam, but {type(optimizer).__name__} has no such option; use False with it"
            )
        return {p: new - p for p, new in zip(given, news, strict=True)}


def sgd_step(
    optimizer: Optimizer, gradients: Gradients | None = None, *, differentiable: bool = False
) -> dict[Tensor, Tensor]:
    """Δp = −lr · g with the learning rate of p's group, whatever the optimizer makes of it.

    With the group's option ``maximize`` it is +lr · g. The ``"sgd"`` that regularisers may look
    ahead to (von Oswald et al. 2020, arXiv 1906.00695). Arguments as in :func:`optimizer_step`.

    Returns:
        Δp by parameter, of p's shape, for those with a gradient; without a graph unless
        ``differentiable``.

    Raises:
        ValueError: if a gradient does not fit a parameter of the optimizer, or a group has no lr.
    """
    given = _gradients(optimizer, gradients)
    changes = {}
    for group in optimizer.param_groups:
        if "lr" not in group:
            kind = type(optimizer).__name__
            raise ValueError(f"the optimizer's groups must have an 'lr', but {kind}'s have none")
        rate = float(group["lr"]) * (1 if group.get("maximize") else -1)
        for p in group["params"]:
            if p in given:
                changes[p] = rate * (given[p] if differentiable else given[p].detach())
    return changes


def fresh_optimizer(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """An optimizer of the same class and options for other parameters, without memory.

    The options are the present ones of the first group, or attributes of the same name.

    Args:
        optimizer: the example; it is left as it is.
        parameters: of the new optimizer, in one group.

    Returns:
        A new optimizer of the class of ``optimizer``, which has taken no step.

    Raises:
        ValueError: if the class has other arguments than such options, or refuses them.
    """
    cls: Any = type(optimizer)
    known = {**vars(optimizer), **optimizer.param_groups[0]}
    wanted = _options(cls)
    if missing := wanted - known.keys():
        problem = f"the values of its arguments {sorted(missing)} are not known"
    else:
        try:
            options = {name: copy.deepcopy(known[name]) for name in wanted}
            return cls(list(parameters), **options)
        except (TypeError, ValueError) as error:
            problem = str(error)
    raise ValueError(
        f"cannot make another optimizer like the given {cls.__name__}: {problem}; pass an "
        "optimizer for the embeddings explicitly"
    )


def _options(cls: type[Optimizer]) -> set[str]:
    """Names of the arguments of the class, without its parameters; ``**kwargs`` go to its base."""
    names: set[str] = set()
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        _self, _params, *arguments = inspect.signature(vars(base)["__init__"]).parameters.values()
        names.update(a.name for a in arguments if a.kind in _NAMED)
        if all(a.kind is not inspect.Parameter.VAR_KEYWORD for a in arguments):
            break
    return names


def _gradients(optimizer: Optimizer, gradients: Gradients | None) -> dict[Tensor, Tensor]:
    """The gradients of those parameters of the optimizer that have one, in its order."""
    parameters = parameters_of(optimizer)
    if gradients is None:
        return {p: p.grad for p in parameters if p.grad is not None}
    for p, gradient in gradients.items():
        if gradient.shape != p.shape:
            raise ValueError(
                f"gradients has one of shape {tuple(gradient.shape)} for a parameter of shape "
                f"{tuple(p.shape)}; it must have the parameter's shape"
            )
    if unknown := gradients.keys() - set(parameters):
        raise ValueError(
            f"gradients has {len(unknown)} parameters that are not in the optimizer, of shapes "
            f"{sorted(tuple(p.shape) for p in unknown)}; it must have none but the optimizer's"
        )
    return {p: gradients[p] for p in parameters if p in gradients}


def _stand_in(parameter: Tensor, gradient: Tensor | None, differentiable: bool) -> Tensor:
    """A copy of the parameter and its gradient; connected to both if ``differentiable``."""
    if gradient is None or not differentiable:
        new = parameter.detach().clone().requires_grad_(parameter.requires_grad)
        if gradient is not None and gradient.layout == torch.strided:
            # Fused steps want both in one layout, and some steps write to gradients.
            new.grad = torch.empty_like(new).copy_(gradient.detach())
        elif gradient is not None:
            new.grad = gradient.detach().clone()
    else:
        new, new_gradient = parameter.clone(), gradient.clone()
        # Adam's √g² has no derivative where g is zero (dead units) or g² underflows: there autograd
        # makes 0 · ∞ = NaN, which would spread to all parameters, so it is set to zero.
        tiny = gradient.detach().abs() < torch.finfo(gradient.dtype).tiny ** 0.5
        for tensor in (new, new_gradient):
            if tensor.requires_grad:
                tensor.register_hook(lambda d: d.masked_fill(tiny & ~d.isfinite(), 0))
        new.grad = new_gradient
    if type(parameter) in (Tensor, nn.Parameter):
        vars(new).update(vars(parameter))  # marks that a step may read
    return new


def _bare_step(optimizer: Optimizer) -> Callable[[Optimizer], Any]:
    """The step of the class: an instance's is patched by schedulers and bound to the instance."""
    step: Any = type(optimizer).step
    _self, *arguments = inspect.signature(step).parameters.values()
    if needed := [a.name for a in arguments if a.default is a.empty and a.kind in _NAMED]:
        raise ValueError(
            f"the step of optimizer {type(optimizer).__name__} needs a {' and a '.join(needed)}, "
            "so it cannot be known beforehand; use an optimizer without, such as Adam"
        )
    while getattr(step, "__code__", None) is _CALLS_HOOKS:
        step = step.__wrapped__
    return step


def _twin(optimizer: Optimizer, memo: dict[int, Any]) -> Optimizer:
    """The optimizer on the copies in ``memo`` (by id, as in deepcopy), without hooks on its step.

    Not its own deepcopy: ``Optimizer.__getstate__`` drops the attributes of subclasses.
    """
    memo[id(optimizer)] = twin = object.__new__(type(optimizer))
    attributes = {name: value for name, value in vars(optimizer).items() if name != "step"}
    attributes.update({name: {} for name in attributes if name.endswith("_hooks")})
    for memory in optimizer.state.values():
        if isinstance(memory, dict):  # faster than deepcopy, and without a history
            tensors = [v for v in memory.values() if isinstance(v, Tensor)]
            memo.update({id(tensor): tensor.detach().clone() for tensor in tensors})
    for value in attributes.values():
        if isinstance(value, Optimizer):  # wrapped in this one
            _twin(value, memo)
    vars(twin).update(copy.deepcopy(attributes, memo))
    return twin


class _NoDetach(TorchFunctionMode):
    """Skips ``detach``: SGD detaches what its momentum starts with, even if differentiable."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return args[0] if func in (Tensor.detach, torch.detach) else func(*args, **(kwargs or {}))
