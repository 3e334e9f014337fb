"""Run a model in evaluation mode and leave no trace."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from avalanche_hnet.core.common.samples import Samples

Values = TypeVar("Values", bound=Tensor | Samples)


@contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Evaluation mode inside for each of the modules; their modes restored after."""
    training = [module for module in modules if module.training]
    try:
        for module in training:
            vars(module)["training"] = False  # setattr is slow, and this in every iteration
        yield
    finally:
        for module in training:
            vars(module)["training"] = True


@contextmanager
def differentiable(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Gradients by the parameters inside, also by those that are frozen, or in inference mode."""
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    with torch.inference_mode(False), torch.enable_grad():
        try:
            for parameter in frozen:
                parameter.requires_grad_(True)
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)


@contextmanager
def random_numbers_kept() -> Iterator[list[str]]:
    """Put the global random states back afterwards; then the list names those that were used."""
    used: list[str] = []
    of_torch, of_python = torch.get_rng_state(), random.getstate()
    of_numpy: Any = np.random.get_state()
    try:
        yield used
    finally:
        if not torch.equal(of_torch, torch.get_rng_state()):
            used.append("torch")
        if of_python != random.getstate():
            used.append("random")
        if not _is_numpys(of_numpy):
            used.append("numpy")
        if "torch" in used:
            torch.set_rng_state(of_torch)
        if "random" in used:
            random.setstate(of_python)
        if "numpy" in used:
            np.random.set_state(of_numpy)


def _is_numpys(state: Any) -> bool:
    now: Any = np.random.get_state()
    if not isinstance(now, tuple):  # of another bit generator than NumPy's own
        return repr(state) == repr(now)
    return state[2:] == now[2:] and state[1].tobytes() == now[1].tobytes()


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every module's mode and all global RNG state restored after."""
    modules = [*model.modules()]
    modes = [module.training for module in modules]
    # Fused attention skips the submodules; cuDNN refuses to differentiate RNNs in evaluation mode.
    fused_attention = torch.backends.mha.get_fastpath_enabled()
    has_rnn = any(isinstance(module, nn.RNNBase) for module in modules)
    try:
        with (
            # Of all devices; to look for some is slow.
            torch.random.fork_rng() if torch.cuda.is_initialized() else nullcontext(),
            random_numbers_kept(),
            torch.backends.cudnn.flags(enabled=False) if has_rnn else nullcontext(),
        ):
            torch.backends.mha.set_fastpath_enabled(False)
            model.eval()  # which a model may have its own idea of
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused_attention)
        for module, training in zip(modules, modes, strict=True):
            if module.training != training:
                module.training = training


def usable(values: Values) -> Values:
    """The values, as a tensor that gradients can go through if they come from inference mode."""
    copied: Any = values.clone() if values.is_inference() else values
    return copied
