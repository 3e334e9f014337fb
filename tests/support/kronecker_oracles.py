"""Kronecker factors by loops over single samples and positions."""

from functools import partial

import torch
from torch.nn.functional import one_hot, pad


def loop_factors(model, layer, x, y, nll, weight_sharing="expand", labels=None):
    """A (K, I, I) and G (K, O, O) of a layer that is called once for each sample.

    Args:
        model: in evaluation mode.
        layer: one of its modules.
        x: inputs.
        y: targets.
        nll: from the outputs and the targets of one sample to its loss.
        weight_sharing: see kronecker_factors.
        labels: of tasks.
    """
    inputs_total, outputs_total, n_called = 0, 0, 0
    for n in range(len(x)):
        seen = []
        handle = layer.register_forward_hook(partial(see, seen))
        arguments = (x[n : n + 1],) if labels is None else (x[n : n + 1], labels[n : n + 1])
        loss = nll(model(*arguments), y[n : n + 1])
        handle.remove()
        if not seen:
            continue
        (inputs, output), *others = seen
        assert not others
        grads = torch.autograd.grad(loss, output)[0][0]
        a, g = ROWS[type(layer).__name__](layer, inputs[0].detach(), grads)
        n_called += a.shape[1] > 0
        if a.shape[1] == 0:
            continue
        if getattr(layer, "bias", None) is not None:
            a = torch.cat([a, a.new_ones(*a.shape[:-1], 1)], -1)
        if weight_sharing == "reduce":
            a, g = a.mean(1, keepdim=True), g.sum(1, keepdim=True)
        for r in range(a.shape[1]):
            inputs_total += torch.einsum("ki,kj->kij", a[:, r], a[:, r]) / a.shape[1]
            outputs_total += torch.einsum("ko,kp->kop", g[:, r], g[:, r])
    return inputs_total / n_called, outputs_total / len(x)


def see(seen, layer, args, output):
    """What comes after may change the output in place, so it gets a copy."""
    seen.append((args[0].clone(), output))
    return output.clone()


def linear_rows(layer, inputs, grads):
    return inputs.reshape(1, -1, layer.in_features), grads.reshape(1, -1, layer.out_features)


def conv_rows(layer, inputs, grads):
    """Each patch is looked at by itself."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = pad(inputs[None], layer._reversed_padding_repeated_twice, mode=mode)[0]
    n_groups, a = layer.groups, []
    positions = torch.cartesian_prod(*map(torch.arange, grads.shape[1:])).view(
        -1, len(layer.kernel_size)
    )
    for position in positions.tolist():
        patch = padded
        settings = zip(position, layer.stride, layer.kernel_size, layer.dilation, strict=True)
        for dim, (p, stride, size, dilation) in enumerate(settings, start=1):
            index = p * stride + dilation * torch.arange(size)
            patch = patch.index_select(dim, index)
        a.append(patch.reshape(n_groups, -1))
    g = grads.reshape(n_groups, layer.out_channels // n_groups, -1).transpose(1, 2)
    return torch.stack(a, 1), g


def embedding_rows(layer, inputs, grads):
    a = one_hot(inputs.flatten(), layer.num_embeddings).to(grads.dtype)
    g = grads.reshape(-1, layer.embedding_dim)
    if layer.padding_idx is not None:  # nothing is looked up there
        is_used = inputs.flatten() != layer.padding_idx
        a, g = a[is_used], g[is_used]
    return a[None], g[None]


ROWS = {
    "Linear": linear_rows,
    "Conv1d": conv_rows,
    "Conv2d": conv_rows,
    "Conv3d": conv_rows,
    "Embedding": embedding_rows,
}


def assert_factors(factor, inputs, outputs):
    """The factor is (A, G), of which A may be the diagonal only."""
    if factor.inputs.dim() < inputs.dim():
        inputs = inputs.diagonal(dim1=1, dim2=2)
    for found, expected in ((factor.inputs, inputs), (factor.outputs, outputs)):
        torch.testing.assert_close(
            found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max())
        )
