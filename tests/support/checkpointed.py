"""Main networks with parts that run again in the backward pass."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations
from torch.utils import checkpoint as checkpoints
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)


def layers(n_in=5, n_out=5):
    return nn.Sequential(nn.Linear(n_in, n_out), nn.Tanh(), nn.Linear(n_out, n_out))


class Target(nn.Module):
    """Of inputs (B, 6) and two outputs; ``again`` may run a function again."""

    def __init__(self, checkpointed=True, reentrant=False):
        super().__init__()
        self.checkpointed, self.reentrant = checkpointed, reentrant
        self.first, self.block, self.last = nn.Linear(6, 5), layers(), nn.Linear(5, 2)

    def again(self, function, *args, **kwargs):
        if not self.checkpointed:
            return function(*args)
        return checkpoint(function, *args, use_reentrant=self.reentrant, **kwargs)

    def middle(self, h):
        return self.again(self.block, h)

    def forward(self, x):
        return self.last(self.middle(self.first(x)).sin())


class TwoBlocks(Target):
    def __init__(self, *args):
        super().__init__(*args)
        self.second = layers()

    def middle(self, h):
        return self.again(self.second, self.again(self.block, h).cos())


class Whole(Target):
    """All of it at once, from inputs without gradients."""

    def forward(self, x):
        return self.again(self.all_of_it, x)

    def all_of_it(self, x):
        return super().forward(x)

    def middle(self, h):
        return self.block(h)


class Nested(Target):
    def middle(self, h):
        return self.again(self.inner, h)

    def inner(self, h):
        return self.again(self.block, h).exp() * 2


class ByParent(Target):
    """Whose weights are not used by the module that has them, and by two, of different names."""

    def __init__(self, *args):
        super().__init__(*args)
        self.block[2].weight = self.first.weight = nn.Parameter(torch.randn(5, 5))
        self.first.in_features = 5
        self.other = self.block
        self.scale = nn.Parameter(torch.randn(5))

    def forward(self, x):
        return super().forward(x[:, :5])

    def middle(self, h):
        def run(h):
            return F.linear(h, self.other[0].weight, self.scale) @ self.first.weight + self.block(h)

        return self.again(run, h)


class Sliced(Target):
    def middle(self, h):
        return self.again(self.block[1:], self.again(self.block[:2], h))


class Sequence(Target):
    def middle(self, h):
        if not self.checkpointed:
            return self.block(h)
        return checkpoint_sequential(self.block, 2, h, use_reentrant=False)


class Listed(Target):
    def __init__(self, *args):
        super().__init__(*args)
        self.blocks = nn.ModuleList([layers(), layers()])
        self.named = nn.ModuleDict({"a": layers()})

    def middle(self, h):
        for block in self.blocks:
            h = h + self.again(block, h)
        return self.again(self.named["a"], h) + self.again(lambda h: self.blocks[0](h), h)


class Dropped(Target):
    def __init__(self, *args):
        super().__init__(*args)
        self.block.append(nn.Dropout(0.4))


class Recurrent(Target):
    def __init__(self, *args):
        super().__init__(*args)
        self.block = nn.LSTM(1, 3, num_layers=2, bidirectional=True, batch_first=True)
        self.out = nn.GRU(6, 5, batch_first=True)

    def middle(self, h):
        h = self.again(lambda h: self.block(h)[0], h[..., None])
        return self.again(self.out, h)[0][:, -1]


class Attentive(Target):
    def __init__(self, *args):
        super().__init__(*args)
        self.block = nn.TransformerEncoderLayer(5, 1, 4, batch_first=True, dropout=0.2)

    def middle(self, h):
        return self.again(self.block, h[:, None])[:, 0]


class Parametrized(Target):
    def __init__(self, *args):
        super().__init__(*args)
        parametrizations.weight_norm(self.block[0])


class WithOptions(Target):
    def middle(self, h):
        h = self.again(self.block, h, early_stop=False, determinism_check="none")
        return self.again(self.block, h, context_fn=self.contexts, preserve_rng_state=False)

    @staticmethod
    def contexts():
        def keep_products(context, op, *args, **kwargs):
            is_product = op == torch.ops.aten.addmm.default
            return CheckpointPolicy.MUST_SAVE if is_product else CheckpointPolicy.PREFER_RECOMPUTE

        return create_selective_checkpoint_contexts(keep_products)


class Wrapped(Target):
    def __init__(self, *args):
        super().__init__(*args)
        if self.checkpointed:
            self.block = checkpoint_wrapper(self.block)

    def middle(self, h):
        return self.block(h)


def remat(function, *args):
    return checkpoints.checkpoint(function, *args, use_reentrant=False)


class ByHelper(Target):
    """Whose own code has no word of checkpoints."""

    def again(self, function, *args):
        return remat(function, *args) if self.on else function(*args)

    @property
    def on(self):
        return self.checkpointed


class Stateful(Target):
    """Counts its calls, and writes to a buffer of its own."""

    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("seen", torch.zeros(()))
        self.n_calls = 0

    def middle(self, h):
        self.n_calls += 1
        self.seen = self.seen + 1
        self.latest = self.block
        return super().middle(h)


class Normalized(Target):
    """With a layer that keeps statistics in the part that runs again."""

    def __init__(self, *args):
        super().__init__(*args)
        self.block.append(nn.BatchNorm1d(5))


SAME_WITHOUT = [
    Target,
    TwoBlocks,
    Whole,
    Nested,
    ByParent,
    Sliced,
    Sequence,
    Listed,
    Dropped,
    Recurrent,
    Attentive,
    Parametrized,
    WithOptions,
    ByHelper,
    Stateful,
]
