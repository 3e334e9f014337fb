"""Run a model in evaluation mode and leave no trace."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


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
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every module's mode and all global RNG state restored after."""
    modes = [(module, module.training) for module in model.modules()]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    # Fused attention skips the submodules; cuDNN refuses to differentiate RNNs in evaluation mode.
    fused_attention = torch.backends.mha.get_fastpath_enabled()
    has_rnn = any(isinstance(module, nn.RNNBase) for module in model.modules())
    try:
        with (
            torch.random.fork_rng(),
            torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled and not has_rnn),
        ):
            torch.backends.mha.set_fastpath_enabled(False)
            model.eval()  # which a model may have its own idea of
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused_attention)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for module, training in modes:
            module.training = training
