"""What a failed step may have left behind: modes, hooks, gradients, random states."""

import random

import numpy as np
import torch

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
)


def traces_of(model):
    """All of it but the random states, by name, to be compared with :func:`differences`."""
    found = {
        "grad mode": torch.is_grad_enabled(),
        "fused attention": torch.backends.mha.get_fastpath_enabled(),
        "cudnn": torch.backends.cudnn.enabled,
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tobytes(),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }
    for name, module in model.named_modules():
        found[f"mode of {name}"] = module.training
        found[f"class of {name}"] = type(module)
        found[f"hooks of {name}"] = sum(len(getattr(module, hooks)) for hooks in HOOKS)
        found[f"attributes of {name}"] = sorted(vars(module))
    for name, p in model.named_parameters():
        found[f"parameter {name}"] = (id(p), p.requires_grad, _bytes(p.detach()))
        found[f"grad of {name}"] = None if p.grad is None else _bytes(p.grad)
        found[f"hooks on {name}"] = len(p._backward_hooks or ())
    for name, buffer in model.named_buffers():
        found[f"buffer {name}"] = (id(buffer), _bytes(buffer))
    return found


def differences(before, after):
    """Names of what is not as it was."""
    names = dict.fromkeys([*before, *after])
    return [name for name in names if before.get(name) != after.get(name)]


def _bytes(tensor):
    return tensor.detach().cpu().contiguous().numpy().tobytes()
