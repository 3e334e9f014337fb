"""Views of a network's modules that have the weights of one run.

``torch.utils.checkpoint`` keeps the function that it is given and calls it again in the backward
pass, when the weights that were put into the network for the run are gone. A function that got
them from a view, which lives as long as the graph that keeps the function, finds them there.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call

from avalanche_hnet.models.checkpoints import REFUSAL
from avalanche_hnet.models.main_network import release_weights, renew_weights


def call_as_view(network: nn.Module, weights: Mapping[str, Tensor], x: Any) -> Any:
    """What the network returns for ``x`` with these weights, by name, also where it runs again.

    All of the network's state but these weights is its own.
    """
    run = _Run(network, weights)
    token = _in_progress.set(run)
    named = {f"network.{name}": weight for name, weight in weights.items()}
    try:
        # Modules that are not attributes of modules have no view, but weights until it is over.
        return functional_call(_Entry(network, run), named, (x,), tie_weights=False)
    finally:
        _in_progress.reset(token)
        run.is_over = True


class _Entry(nn.Module):
    def __init__(self, network: nn.Module, run: _Run) -> None:
        super().__init__()
        self.network = network
        self.run = run

    def forward(self, x: Any) -> Any:
        return self.run.view(self.network)(x)


class _Run:
    """One call of a network: its weights, and the views that have them.

    Attributes:
        network: what is called.
        is_over: whether the call has returned, so that all that is called now is called again.
        recorded: modules, by ``id``, that the call ran with gradients.
    """

    def __init__(self, network: nn.Module, weights: Mapping[str, Tensor]) -> None:
        self.network = network
        self.is_over = False
        self.recorded: set[int] = set()
        self._weights: dict[int, dict[str, Tensor]] = {}
        for name, weight in weights.items():
            prefix, _, last = name.rpartition(".")
            module = network.get_submodule(prefix)
            self._weights.setdefault(id(module), {})[last] = weight
        # Weak, since views refer to their run: graphs are then freed without garbage collection.
        self._views: WeakValueDictionary[int, _View] = WeakValueDictionary()

    def weights_of(self, module: nn.Module) -> dict[str, Tensor]:
        return self._weights.get(id(module), {})

    def view(self, module: nn.Module) -> nn.Module:
        """A module of the same class and state, with the weights of this run."""
        if isinstance(module, (_View, torch.jit.ScriptModule)):  # scripts run in no other class
            return module
        view = self._views.get(id(module))
        if view is None:
            original: Any = type(module)
            cls = _view_class(original)
            view = cls.__new__(cls)
            object.__setattr__(view, "_original", module)
            object.__setattr__(view, "_own_run", self)
            object.__setattr__(view, "__dict__", module.__dict__)
            self._views[id(module)] = view
        return view

    def require_recording(self, module: nn.Module) -> None:
        """Refuse reentrant checkpoints, whose backward passes would each be the weights' last.

        They run without gradients at first, and with them when they run again.
        """
        is_generated = any(not weight.is_leaf for weight in self.weights_of(module).values())
        if not is_generated or not torch.is_grad_enabled():
            return
        if not self.is_over:
            self.recorded.add(id(module))
        elif id(module) not in self.recorded:
            raise RuntimeError(REFUSAL.format(type(module).__name__))


_in_progress: ContextVar[_Run | None] = ContextVar("in_progress", default=None)


class _View(nn.Module):
    """Has the attributes of ``_original``, but of parameters and modules those of ``_run``."""

    __slots__ = ("_original", "_own_run")
    _original: nn.Module
    _own_run: _Run

    @property
    def _run(self) -> _Run:
        run, current = self._own_run, _in_progress.get()
        if run.is_over and current is not None and current.network is run.network:
            raise RuntimeError(
                f"a {type(self).__name__} of the target was kept by an earlier call, in a list or "
                "the like, with the weights of that call; put modules there in __init__"
            )
        return run

    def __getattr__(self, name: str) -> Any:
        weights = self._run.weights_of(self._original)
        if name in weights:
            return weights[name]
        value = super().__getattr__(name)
        return self._run.view(value) if isinstance(value, nn.Module) else value

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value._original if isinstance(value, _View) else value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._run.require_recording(self._original)
        if not isinstance(self._original, nn.RNNBase):
            return super().__call__(*args, **kwargs)
        renew_weights(self._original, [""])
        try:
            return super().__call__(*args, **kwargs)
        finally:
            release_weights(self._original, [""])

    def __eq__(self, other: object) -> bool:
        """Views are equal to what they show, which hooks may look up."""
        return self._original is (other._original if isinstance(other, _View) else other)

    def __hash__(self) -> int:
        return hash(self._original)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copies of a network that has kept a view have a module in its place."""
        return _itself, (self._original,)


def _itself(module: nn.Module) -> nn.Module:
    return module


def _parameters(view: _View) -> dict[str, Tensor | None]:
    return {**vars(view)["_parameters"], **view._run.weights_of(view._original)}


def _modules(view: _View) -> dict[str, nn.Module | None]:
    modules: dict[str, nn.Module | None] = vars(view)["_modules"]
    return {n: None if m is None else view._run.view(m) for n, m in modules.items()}


@lru_cache(maxsize=1024)
def _view_class(original: type[nn.Module]) -> type[_View]:
    attributes = {
        "__slots__": (),
        # Slices of containers are made by their class, and are no views themselves.
        "__class__": property(lambda view: original),
        "_parameters": property(_parameters),
        "_modules": property(_modules),
    }
    return type(original.__name__, (_View, original), attributes)
