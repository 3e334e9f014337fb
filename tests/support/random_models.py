"""Models of random parts and wirings, with data for them: the same for the same seed."""

import random
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

F_, C = 4, 3  # features of a position, classes


class Block(nn.Module):
    """From h (B, T, F) to the same; what it decides, it decides by the inputs x (B, T, F)."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(F_, F_)


class Plain(Block):
    def forward(self, h, x):
        return self.layer(h).tanh()


class InPlace(Block):
    def forward(self, h, x):
        return nn.functional.leaky_relu(self.layer(h), inplace=True)


class TimeFirst(Block):
    def forward(self, h, x):
        return self.layer(h.transpose(0, 1)).tanh().transpose(0, 1)


class Flat(Block):
    def forward(self, h, x):
        return self.layer(h.flatten(0, 1)).tanh().view_as(h)


class SelectedTokens(Block):
    """The layer for some tokens only, perhaps of none of the samples, perhaps of one each."""

    def forward(self, h, x):
        chosen, out = x[..., 0] > 0.8, h.clone()
        out[chosen] = self.layer(h[chosen]).tanh().to(h.dtype)
        return out


class SelectedSamples(Block):
    def forward(self, h, x):
        chosen = x[:, 0, 0] > 0
        return h.index_put((chosen,), self.layer(h[chosen]).tanh().to(h.dtype))


class TokenExperts(nn.Module):
    """Each token goes to one of some experts, and they get flat lists."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(F_, F_) for _ in range(3))

    def forward(self, h, x):
        flat, choice = h.flatten(0, 1), x.flatten(0, 1)[:, :3].argmax(1)
        out = torch.zeros_like(flat)
        for k, expert in enumerate(self.experts):
            rows = (choice == k).nonzero()[:, 0]
            out = out.index_add(0, rows, expert(flat[rows]).tanh().to(h.dtype))
        return out.view_as(h)


class SampleExperts(nn.Module):
    """Each sample goes to one of some experts."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(F_, F_) for _ in range(2))

    def forward(self, h, x):
        choice = (x[:, 0, 0] > 0).long()
        out = torch.zeros_like(h)
        for k, expert in enumerate(self.experts):
            rows = (choice == k).nonzero()[:, 0]
            if len(rows):
                out = out.index_copy(0, rows, expert(h[rows]).tanh().to(h.dtype))
        return out


class Sorted(Block):
    """Samples in another order, or as tokens in order of their features."""

    def forward(self, h, x):
        order = x[:, 0, 0].argsort()
        return self.layer(h[order]).tanh()[order.argsort()]


class SortedTokens(Block):
    """As many rows as there are samples, if there is one token; else tokens by the list."""

    def forward(self, h, x):
        order = x[..., 0].flatten().argsort()
        return self.layer(h.flatten(0, 1)[order]).tanh()[order.argsort()].view_as(h)


class LargestTokens(Block):
    """As many tokens as there are samples, with an even number where it is one of each."""

    def forward(self, h, x):
        score = x[..., 1].flatten()
        chosen = (score > 0.5).nonzero()[:, 0]
        flat = h.flatten(0, 1)
        return flat.index_add(0, chosen, self.layer(flat[chosen]).tanh().to(h.dtype)).view_as(h)


class FewTokens(Block):
    """No token of a sample, one or two: as many as there are samples, perhaps."""

    def forward(self, h, x):
        position = torch.arange(h.shape[1])
        chosen = position < 1 + (x[:, :1, 2].sign() + x[:, :1, 3].sign()) / 2
        out = h.clone()
        out[chosen] = self.layer(h[chosen]).tanh().to(h.dtype)
        return out


class MaskedByMatrix(Block):
    """Rows of the layer go to samples by a matrix that depends on the inputs."""

    def forward(self, h, x):
        flat = x[..., 0].flatten() > 0.5
        weights = torch.diag(flat.to(h.dtype))[flat]
        return h + (weights.T @ self.layer(weights @ h.flatten(0, 1))).view_as(h)


class Twice(Block):
    def forward(self, h, x):
        return self.layer(self.layer(h).tanh()).tanh()


class TwiceForSome(Block):
    """The second call is made for batches with a large input, and counts for these samples."""

    def forward(self, h, x):
        first = self.layer(h).tanh()
        large = x[:, :1, :1] > 1
        return torch.where(large, self.layer(first).tanh(), first) if large.any() else first


class OutsideForSome(Block):
    """The weight is used without its layer, which counts for some samples only."""

    def forward(self, h, x):
        return self.layer(h).tanh() + (x[:, :1, :1] - 0.5).relu() * (h @ self.layer.weight)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(F_, F_), nn.Linear(F_, F_, bias=False)

    def forward(self, h, x):
        return torch.where(x[:, :1, :1] > 0, self.left(h).tanh(), self.right(h))


class LayerScale(Block):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((F_,), 1e-4))

    def forward(self, h, x):
        return h + self.scale * self.layer(h.transpose(0, 1)).transpose(0, 1).tanh()


class Scalar(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.nothing = nn.Parameter(torch.zeros(0, 2))

    def forward(self, h, x):
        return h * self.scale.exp()


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(F_)

    def forward(self, h, x):
        return self.norm(h)


class Channels(nn.Module):
    """Convolution and group normalisation over time."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(F_, F_, 3, padding=1), nn.GroupNorm(2, F_)

    def forward(self, h, x):
        return self.norm(self.conv(h.transpose(1, 2))).transpose(1, 2).tanh()


class Batch(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(F_)
        self.norm.running_mean.uniform_(-0.5, 0.5)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, h, x):
        return self.norm(h.transpose(1, 2)).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.first = batch_first
        self.layer = nn.TransformerEncoderLayer(F_, 2, 5, dropout=0.0, batch_first=batch_first)

    def forward(self, h, x):
        return self.layer(h) if self.first else self.layer(h.transpose(0, 1)).transpose(0, 1)


class OwnAttention(nn.Module):
    """Biases of keys have gradients that are nothing but rounding."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(F_, F_) for _ in range(3))

    def forward(self, h, x):
        scores = self.q(h) @ self.k(h).transpose(1, 2)
        return scores.softmax(-1) @ self.v(h)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(F_, F_, batch_first=True)

    def forward(self, h, x):
        return self.gru(h)[0]


class Cell(nn.Module):
    """One call for each time step."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2 * F_, F_)

    def forward(self, h, x):
        steps, state = [], torch.zeros_like(h[:, 0])
        for step in h.unbind(1):
            state = self.layer(torch.cat([step, state], 1)).tanh()
            steps.append(state)
        return torch.stack(steps, 1)


class Checkpointed(nn.Module):
    def __init__(self, block, reentrant):
        super().__init__()
        self.block, self.reentrant = block, reentrant

    def forward(self, h, x):
        return checkpoint(self.block, h, x, use_reentrant=self.reentrant)


class Autocast(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, h, x):
        if h.dtype == torch.float64:
            return self.block(h, x)
        with torch.autocast("cpu", torch.bfloat16):
            return self.block(h, x).to(h.dtype)


class WithoutGradient(Block):
    def forward(self, h, x):
        with torch.no_grad():
            return self.layer(h).tanh()


class Residual(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, h, x):
        return h + self.block(h, x)


SIMPLE = (
    Plain, InPlace, TimeFirst, Flat, SelectedTokens, SelectedSamples, TokenExperts, SampleExperts,
    Sorted, SortedTokens, LargestTokens, FewTokens, MaskedByMatrix, Twice, TwiceForSome,
    OutsideForSome, Branches, LayerScale, Scalar, Norm, Channels, Batch, OwnAttention,
    Recurrent, Cell, WithoutGradient,
)  # fmt: skip


class Model(nn.Module):
    """Blocks one after the other, and a head on what is left of time."""

    def __init__(self, start, blocks, head, pooling):
        super().__init__()
        self.start, self.blocks, self.head = start, nn.ModuleList(blocks), head
        self.pooling = pooling

    def forward(self, x):
        h = x if self.start is None else self.start(x)
        for block in self.blocks:
            h = block(h, h.detach() if self.start is not None else x)
        if self.pooling == "mean":
            return self.head(h.mean(1))
        if self.pooling == "first":
            return self.head(h[:, 0])
        if self.pooling == "squeeze":  # as MTSimpleCNN does; a batch of one loses its dimension
            return self.head(h.transpose(1, 2).mean(2, keepdim=True).squeeze())
        if self.head.out_features == 1:
            return self.head(h).sum(1).squeeze()
        return self.head(h).mean(1)


@dataclass(frozen=True)
class Case:
    """A model with batches (x, y) and what it is called in messages."""

    model: nn.Module
    batches: list
    name: str
    dtype: torch.dtype = torch.float64  # the coarsest


def random_case(seed):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    dtype = draw.choice([torch.float64] * 5 + [torch.float32] * 3 + [torch.bfloat16] * 2)
    from_tokens = draw.random() < 0.2
    blocks = [_block(draw, exact=dtype == torch.float64) for _ in range(draw.randint(1, 3))]
    if from_tokens:
        # Inputs decide on ways; hidden ones of other types would decide otherwise.
        blocks = [b for b in blocks if not _decides(b)] or [Plain()]
    if draw.random() < 0.15:
        blocks.append(blocks[0])  # a block of the same weights
    pooling = draw.choice(["mean", "first", "squeeze", "late"])
    n_out = 1 if pooling == "late" and draw.random() < 0.5 else C
    start = nn.Embedding(6, F_) if from_tokens else None
    model = Model(start, blocks, nn.Linear(F_, n_out), pooling)
    if draw.random() < 0.15:
        blocks[0].requires_grad_(False)
    model = model.to(dtype).eval()
    batches = [
        (_inputs(from_tokens, n, draw.choice(_LENGTHS), draw, dtype), _targets(n, n_out, dtype))
        for n in [draw.randint(1, 7) for _ in range(draw.randint(1, 4))]
    ]
    name = f"seed {seed}: {dtype}, {pooling}, {[_name(b) for b in blocks]}"
    has_autocast = any(isinstance(module, Autocast) for module in model.modules())
    return Case(model, batches, name, torch.bfloat16 if has_autocast else dtype)


_LENGTHS = (1, 2, 3, 5)


def _inputs(from_tokens, n_samples, length, draw, dtype):
    if from_tokens:
        return torch.randint(0, 6, (n_samples, length))
    x = torch.randn(n_samples, length, F_).bfloat16()  # the same in every type
    if draw.random() < 0.5:
        x[: draw.randint(1, 3), :, :2] = -1  # the first samples take no part in some ways
    return x.to(dtype)


def _targets(n_samples, n_out, dtype):
    if n_out == 1:
        return torch.randn(n_samples).to(dtype)
    return torch.randint(0, n_out, (n_samples,))


def _block(draw, exact):
    kind = draw.random()
    if kind < 0.1:
        return Attention(draw.random() < 0.5)
    block = draw.choice(SIMPLE)()
    if kind < 0.2:
        return Residual(block)
    if kind < 0.3 and not isinstance(block, WithoutGradient):
        return Checkpointed(block, draw.random() < 0.5)
    if kind < 0.4 and not exact:
        return Autocast(block)
    return block


def _decides(block):
    while hasattr(block, "block"):
        block = block.block
    return type(block) in {
        SelectedTokens, SelectedSamples, TokenExperts, SampleExperts, Sorted, SortedTokens,
        LargestTokens, FewTokens, MaskedByMatrix, TwiceForSome, OutsideForSome, Branches,
    }  # fmt: skip


def _name(block):
    inner = f"({_name(block.block)})" if hasattr(block, "block") else ""
    return type(block).__name__ + inner


def single_samples(case, dtype):
    """The empirical Fisher, each sample on its own, in a type; squares are in float64."""
    model = deepcopy(case.model).to(dtype)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    total = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in parameters.items()}
    n_samples = sum(len(x) for x, _ in case.batches)
    for x, y in case.batches:
        for n in range(len(x)):
            pair = torch.cat([x[n : n + 1]] * 2)  # a model may squeeze a batch of one
            out = model(pair.to(dtype) if pair.is_floating_point() else pair)[:1]
            target = y[n : n + 1].to(out.dtype) if y.is_floating_point() else y[n : n + 1]
            out = out.to(torch.promote_types(out.dtype, torch.float32))
            if y.is_floating_point():
                loss = (out - target).square().sum() / 2
            else:
                loss = nn.functional.cross_entropy(out, target)
            if not loss.requires_grad:
                continue
            for parameter in parameters.values():
                parameter.grad = None
            loss.backward()  # checkpoints know no other way
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    total[name] += parameter.grad.to_dense().double() ** 2 / n_samples
    return total
