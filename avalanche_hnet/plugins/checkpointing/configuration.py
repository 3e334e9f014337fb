"""What must be the same when a run goes on, as names and printed values."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.metadata import version
from typing import Any
from zlib import crc32

import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_hnet.plugins.checkpointing.kinds import full_name

# What Avalanche's templates have; all else is a strategy's own.
OF_TEMPLATES = {
    "model",
    "device",
    "plugins",
    "experience",
    "is_training",
    "current_eval_stream",
    "_distributed_check",
    "_eval_streams",
    "optimizer",
    "_criterion",
    "train_epochs",
    "train_mb_size",
    "eval_mb_size",
    "retain_graph",
    "evaluator",
    "eval_every",
    "clock",
    "adapted_dataset",
    "dataloader",
    "mbatch",
    "mb_output",
    "loss",
    "_stop_training",
    "optimized_param_id",
}
_PLAIN = (type(None), bool, int, float, str)
_OPTIONS = ("train_mb_size", "train_epochs", "eval_mb_size", "eval_every", "device")
# Attributes that are state, or where something is logged.
_NO_OPTIONS = {"loggers", "plugins", "evaluator", "clock", "optimizer", "model"}
_DEPTH = 4


def configuration(strategy: SupervisedTemplate) -> dict[str, str]:
    """Of a strategy that has not trained yet: versions, architecture, options of all its parts."""
    found = {
        f"version of {name}": version(name) for name in ("avalanche-hnet", "avalanche-lib", "torch")
    }
    found["strategy"] = full_name(type(strategy))
    found |= {f"strategy.{name}": str(getattr(strategy, name)) for name in _OPTIONS}
    found |= _flat("criterion", strategy._criterion)
    found["model"] = full_name(type(strategy.model))
    found |= {
        f"model.{name}": f"{t.dtype} {tuple(t.shape)}"
        for name, t in strategy.model.state_dict().items()
        if isinstance(t, Tensor)
    }
    found |= _flat("model", strategy.model, depth=_DEPTH)
    found |= _optimizer("optimizer", strategy.optimizer)
    for name, value in vars(strategy).items():
        is_plugin = any(value is plugin for plugin in strategy.plugins)
        if name not in OF_TEMPLATES and not name.startswith("_") and not is_plugin:
            found |= _flat(f"strategy.{name}", value)
    for number, plugin in enumerate(strategy.plugins):
        found |= _flat(f"plugins[{number}]", plugin)
    return found


def initial_weights(model: nn.Module) -> int:
    """A checksum of the weights that a run starts from."""
    checksum = 0
    for tensor in model.state_dict().values():
        if isinstance(tensor, Tensor) and tensor.numel():
            values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            checksum = crc32(values.numpy().data, checksum)
    return checksum


def differences(saved: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """What differs between two configurations, in words."""
    names = [*saved, *(name for name in here if name not in saved)]
    return [
        f"{name} was {saved.get(name, 'not there')} and is {here.get(name, 'not there')}"
        for name in names
        if saved.get(name) != here.get(name)
    ]


def _optimizer(name: str, optimizer: Optimizer) -> dict[str, str]:
    found = {name: full_name(type(optimizer))}
    for number, group in enumerate(optimizer.param_groups):
        options = {k: v for k, v in group.items() if k != "params"}
        found |= {f"{name}.param_groups[{number}].{k}": str(v) for k, v in options.items()}
    return found


def _flat(name: str, value: Any, depth: int = 0) -> dict[str, str]:
    return dict(_described(name, value, depth))


def _described(name: str, value: Any, depth: int) -> Iterator[tuple[str, str]]:
    if isinstance(value, _PLAIN):
        yield name, repr(value)
    elif isinstance(value, Tensor):
        yield name, f"{value.dtype} {tuple(value.shape)}"
    elif isinstance(value, partial):
        yield from _described(name, value.func, depth)
        yield from _described(f"{name}.arguments", [value.args, value.keywords], depth)
    elif isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
        yield name, f"{value.__module__}.{value.__qualname__}"
    elif isinstance(value, Optimizer):
        yield name, full_name(type(value))
    elif isinstance(value, nn.Module) and depth < _DEPTH:
        yield name, str(value)
    elif isinstance(value, list | tuple):
        yield name, f"{len(value)} entries"
        for number, entry in enumerate(value):
            yield from _described(f"{name}[{number}]", entry, depth + 1)
    elif isinstance(value, dict) and all(isinstance(key, str | int) for key in value):
        for key, entry in value.items():
            yield from _described(f"{name}[{key!r}]", entry, depth + 1)
    else:
        yield name, full_name(type(value))
        if depth < _DEPTH and _has_options(value):
            for key, entry in vars(value).items():
                if key not in _NO_OPTIONS and not key.startswith("_"):
                    yield from _described(f"{name}.{key}", entry, depth + 1)


def _has_options(value: object) -> bool:
    packages = ("avalanche.", "avalanche_hnet.")
    is_ours = type(value).__module__.startswith(packages) and hasattr(value, "__dict__")
    # What a user's plugin keeps in its attributes may be anything, an option or not.
    return is_ours or isinstance(value, EvaluationPlugin)
