"""What the empirical Fisher costs, in forward and backward passes over the same data.

The single-sample loops and ``vmap`` are timed on one batch and scaled to all of them.
"""

from __future__ import annotations

import copy
from itertools import count

import torch
from backpack import backpack, extend
from backpack.extensions import SumGradSquared
from hypnettorch.mnets import MLP
from hypnettorch.utils.ewc_regularizer import compute_fisher
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from avalanche_hnet import diagonal_fisher, kronecker_factors
from benchmarks.networks import lenet, mlp, resnet
from benchmarks.rows import Function, Limit, Row, in_turn
from benchmarks.timing import threads

PASS = "one forward and backward pass"
Batches = list[tuple[Tensor, Tensor]]


def rows(repeats: int) -> list[Row]:
    """An MLP and a LeNet against all others, a ResNet-18, and more and more samples and units."""
    timed = []
    with threads(1):
        for name, make, shape in (
            ("MLP 784-400-400-10", lambda: mlp(784, 400, 400, 10), (1, 28, 28)),
            ("LeNet", lenet, (1, 28, 28)),
        ):
            timed += _against_others(name, make(), random_batches(128, 16, shape), repeats)
            timed += _kronecker(name, make(), random_batches(128, 16, shape), repeats)
        for n_batches in (2, 8, 32):
            batches = random_batches(128, n_batches, (784,))
            title = f"Fisher of MLP 784-400-400-10, {128 * n_batches} samples"
            timed += _against_a_pass(title, mlp(784, 400, 400, 10), batches, repeats)
        for width in (100, 400, 1600):
            batches = random_batches(128, 2, (784,))
            network = mlp(784, width, width, 10)
            title = f"Fisher of MLP 784-{width}-{width}-10"
            limit = Limit(2.5) if width == 100 else None
            timed += _against_a_pass(title, network, batches, repeats, limit)
    with threads(2):
        batches = random_batches(32, 12, (3, 32, 32))
        title = "Fisher of ResNet-18, 32×32, 384 samples"
        timed += _against_a_pass(title, resnet().eval(), batches, min(3, repeats), Limit(2))
        title = "ResNet-18, 32×32, 384 samples"
        timed += _kronecker(title, resnet().eval(), batches, min(3, repeats))
    return timed


def random_batches(batch_size: int, number: int, shape: tuple[int, ...]) -> Batches:
    """Inputs and labels."""
    torch.manual_seed(0)
    return [
        (torch.randn(batch_size, *shape), torch.randint(10, (batch_size,))) for _ in range(number)
    ]


def _against_a_pass(
    title: str, model: nn.Module, batches: Batches, repeats: int, limit: Limit | None = None
) -> list[Row]:
    functions: dict[str, Function] = {
        PASS: lambda: forward_and_backward(model, batches),
        title: lambda: diagonal_fisher(model, batches),
    }
    limits = {title: limit} if limit else {}
    return in_turn("Fisher", functions, repeats=repeats, limits=limits)


def _kronecker(network: str, model: nn.Module, batches: Batches, repeats: int) -> list[Row]:
    expand, reduce = (f"Kronecker factors ({how}), {network}" for how in ("expand", "reduce"))
    functions: dict[str, Function] = {
        PASS: lambda: forward_and_backward(model, batches),
        expand: lambda: kronecker_factors(model, batches),
        reduce: lambda: kronecker_factors(model, batches, weight_sharing="reduce"),
    }
    limits = {expand: Limit(2), reduce: Limit(2)}
    return in_turn("Fisher", functions, repeats=repeats, limits=limits)


def _against_others(
    network: str, model: nn.Sequential, batches: Batches, repeats: int
) -> list[Row]:
    extended = extend(copy.deepcopy(model))
    loss = extend(nn.CrossEntropyLoss(reduction="sum"))
    first = batches[0]
    fast: dict[str, Function] = {
        PASS: lambda: forward_and_backward(model, batches),
        f"diagonal_fisher, {network}": lambda: diagonal_fisher(model, batches),
        f"BackPACK's SumGradSquared, {network}": lambda: with_backpack(extended, loss, batches),
    }
    limits = {f"diagonal_fisher, {network}": Limit(1.5)}
    timed = in_turn("Fisher", fast, repeats=repeats, limits=limits)
    slow: dict[str, Function] = {
        PASS: lambda: forward_and_backward(model, batches[:1]),
        f"vmap of PyTorch, {network}": lambda: with_vmap(model, first),
        f"single-sample loop, {network}": lambda: one_by_one(model, first),
    }
    if network.startswith("MLP"):
        slow["hypnettorch's compute_fisher, MLP 784-400-400-10"] = authors_fisher(first)
    return timed + in_turn("Fisher", slow, repeats=min(3, repeats))


def forward_and_backward(model: nn.Module, batches: Batches) -> None:
    """What an epoch of training costs without its optimizer."""
    for x, y in batches:
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()


def with_backpack(model: nn.Module, loss: nn.Module, batches: Batches) -> None:
    """BackPACK's sum of squared per-sample gradients."""
    for x, y in batches:
        model.zero_grad()
        with backpack(SumGradSquared()):
            loss(model(x), y).backward()


def one_by_one(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """Every sample on its own."""
    parameters = list(model.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    for x, y in zip(batch[0].split(1), batch[1].split(1), strict=True):
        gradients = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), parameters)
        for t, g in zip(total, gradients, strict=True):
            t += g.square()


def with_vmap(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """Per-sample gradients of the whole batch at once."""
    parameters = {n: p.detach() for n, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, parameters, x[None]), y[None])

    for g in vmap(grad(loss), in_dims=(None, 0, 0))(parameters, *batch).values():
        g.square().sum(0)


class _OneBatch:
    """As much of a data handler of hypnettorch as its Fisher asks for."""

    classification, is_one_hot, out_shape, num_classes = True, True, [10], 10

    def __init__(self, batch: tuple[Tensor, Tensor]) -> None:
        self.x, self.y = batch[0].flatten(1), nn.functional.one_hot(batch[1], 10).float()
        self.num_train_samples = len(self.x)
        self.position = 0

    def next_train_batch(self, size: int, return_ids: bool = False) -> tuple[Tensor, Tensor]:
        """The next sample."""
        row = slice(self.position, self.position + size)
        self.position += size
        return self.x[row], self.y[row]

    def reset_batch_generator(self, train: bool, test: bool, val: bool) -> None:
        """Start anew."""
        self.position = 0

    def input_to_torch_tensor(self, x: Tensor, device: str, mode: str) -> Tensor:
        """Inputs are tensors already."""
        return x

    def output_to_torch_tensor(self, y: Tensor, device: str, mode: str) -> Tensor:
        """Targets are tensors already."""
        return y


def authors_fisher(batch: tuple[Tensor, Tensor]) -> Function:
    """Hypnettorch's loop over samples, with a network of the same size of theirs."""
    network = MLP(n_in=784, n_out=10, hidden_layers=(400, 400), verbose=False)
    data = _OneBatch(batch)
    tasks = count()

    def run() -> None:
        compute_fisher(next(tasks), data, list(network.parameters()), "cpu", network)

    return run
