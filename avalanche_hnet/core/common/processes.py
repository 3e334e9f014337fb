"""What the processes of a ``torch.distributed`` group, as ``torchrun`` starts them, agree on.

Without a group, or with a single process in it, nothing here changes anything. With several, each
function that exchanges something must be called by all of them, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def n_processes() -> int:
    """Processes of the group; 1 without a group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def are_several() -> bool:
    """Whether there is anything to agree on."""
    return n_processes() > 1


def process_number() -> int:
    """This process's rank; 0 is the main process."""
    return dist.get_rank() if are_several() else 0


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, where it is wrapped for several processes.

    Names of parameters, active elements and task labels are those of the model itself.
    """
    return model.module if isinstance(model, DistributedDataParallel) else model


def add_up(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by the sum of those that the processes have."""
    if are_several():
        for tensor in tensors:
            _exchange(tensor, dist.all_reduce)


def take_first(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by that of the main process."""
    if are_several():
        for tensor in tensors:
            _exchange(tensor, lambda sent: dist.broadcast(sent, 0))


def share_generator(generator: torch.Generator | None) -> None:
    """Go on with the random numbers of the main process; None is PyTorch's global generator."""
    if not are_several():
        return
    state = torch.get_rng_state() if generator is None else generator.get_state()
    take_first([state])
    if generator is None:
        torch.set_rng_state(state)
    else:
        generator.set_state(state)


def average(number: float, like: Tensor) -> float:
    """The mean of the processes' numbers; ``like`` says on which device they are exchanged."""
    if not are_several():
        return number
    total = torch.tensor(number, dtype=torch.float64, device=like.device)
    add_up([total])
    return total.item() / n_processes()


def mean(tensor: Tensor) -> Tensor:
    """The mean of the processes' tensors; of several, without graph."""
    (found,) = averages([tensor], [tensor])
    assert found is not None
    return found


def averages(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor | None]:
    """The means of the processes' tensors, one by one.

    Args:
        tensors: None stands for zeros.
        like: of their shapes and types; the same in each process.

    Returns:
        The means; None where all processes have None.
    """
    if not are_several():
        return [*tensors]
    means: list[Tensor | None] = [None] * len(like)
    kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for i, t in enumerate(like):
        kinds.setdefault((t.dtype, t.device), []).append(i)
    for numbers in kinds.values():  # one exchange for each
        given = [tensors[i] for i in numbers]
        parts = [
            torch.zeros_like(like[i]).flatten() if t is None else t.detach().flatten()
            for i, t in zip(numbers, given, strict=True)
        ]
        exists = parts[0].new_tensor([t is not None for t in given])
        total = torch.cat([*parts, exists])
        add_up([total])
        total /= n_processes()
        *of_parts, exists = total.split([*(part.numel() for part in parts), len(parts)])
        # On a GPU the look would wait for it, and a process that has all need not look.
        has_all = all(t is not None for t in given)
        exist = [True] * len(given) if has_all else (exists > 0).tolist()
        for i, mean, does in zip(numbers, of_parts, exist, strict=True):
            means[i] = mean.view(like[i].shape) if does else None
    return means


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Let each parameter's ``grad`` be the mean of the processes'; where none has one, None."""
    if not are_several():
        return
    trained = [p for p in parameters if p.requires_grad]
    means = averages([p.grad for p in trained], trained)
    for parameter, mean in zip(trained, means, strict=True):
        if mean is None or parameter.grad is None:
            parameter.grad = None if mean is None else torch.empty_like(parameter).copy_(mean)
        else:
            parameter.grad.copy_(mean)


def agree_on(model: nn.Module) -> None:
    """Let a trained model be the same in all processes, its buffers as in the main one.

    Raises:
        ValueError: if weights differ, naming the first parameter that does.
    """
    if not are_several():
        return
    _refuse_different(model)
    take_first(model.buffers())


def _refuse_different(model: nn.Module) -> None:
    named = [*model.named_parameters()]
    digests = torch.stack([_digest(p) for _, p in named])
    extremes = torch.stack([digests, -digests])
    _exchange(extremes, lambda sent: dist.all_reduce(sent, dist.ReduceOp.MAX))
    different = (extremes[0] != -extremes[1]).tolist()
    if any(different):
        raise ValueError(
            f"the processes have different weights after training, first in "
            f"{named[different.index(True)][0]!r}: something has changed them without a word to "
            "the other processes, or a parameter has required grad only since the model was wrapped"
        )


def _digest(tensor: Tensor) -> Tensor:
    """A number that depends on all bits."""
    bits = tensor.detach().contiguous().flatten().view(torch.uint8).long()
    weights = torch.arange(1, len(bits) + 1, device=bits.device) % 65_521
    return (bits * weights).sum()


@torch.no_grad()
def _exchange(tensor: Tensor, exchange: Callable[[Tensor], Any]) -> None:
    """Do it to the tensor's values, where the group's backend can."""
    sent = tensor.detach().clone(memory_format=torch.contiguous_format)
    if f"{sent.device.type}:" not in dist.get_backend_config():  # NCCL: GPUs only
        sent = sent.cuda()
    exchange(sent)
    tensor.copy_(sent)
