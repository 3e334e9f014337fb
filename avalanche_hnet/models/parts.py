"""What dynamic modules are made of, to take back how they have adapted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from avalanche.models import DynamicModule
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from avalanche_hnet.models.task_registry import TaskRegistry

# Of what every module has, adaptations change no more than this.
_UNTOUCHED = vars(nn.Module()).keys() - {"_parameters", "_buffers", "_modules"}


class Parts:
    """Parameters, buffers, submodules and other attributes of a model's dynamic modules.

    Values are copied of buffers alone: an evaluation leaves those of parameters as they are, or
    puts new ones in their places.

    Args:
        model: any module; what is not part of one of Avalanche's ``DynamicModule`` is left alone.
    """

    def __init__(self, model: nn.Module) -> None:
        self._of: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._contents: list[tuple[Any, Any]] = []
        self._values: list[tuple[Tensor, Tensor]] = []
        for owner in _owners(model):
            self._remember(owner)

    @torch.no_grad()
    def restore(self) -> None:
        """Make the modules what they were."""
        for container, content in self._contents:
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)
        for attributes, before in self._of:
            for name in attributes.keys() - before.keys() - _UNTOUCHED:
                del attributes[name]
            attributes.update(before)
        for buffer, values in self._values:
            if not torch.equal(buffer, values):
                buffer.copy_(values)

    def _remember(self, owner: object) -> None:
        if isinstance(owner, nn.Module):
            self._values += [(b, b.clone()) for b in owner.buffers(recurse=False)]
        before = {name: v for name, v in vars(owner).items() if name not in _UNTOUCHED}
        self._of.append((vars(owner), before))
        for value in before.values():
            if isinstance(value, (dict, list, set)):
                self._contents.append((value, value.copy()))
            elif isinstance(value, TaskRegistry):
                self._remember(value)


def _owners(model: nn.Module) -> Iterator[nn.Module]:
    """Each module once that is, or is part of, a dynamic one."""
    dynamic = [module for module in model.modules() if isinstance(module, DynamicModule)]
    for module in dict.fromkeys(part for whole in dynamic for part in whole.modules()):
        if not isinstance(module, LazyModuleMixin):  # it takes its shape in its first forward pass
            yield module
