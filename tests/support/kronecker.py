"""Kronecker-factored posteriors, and their explicit matrices."""

import torch
from torch import nn
from torch.func import functional_call, jacrev

from avalanche_hnet import Gaussian, KroneckerPosterior
from avalanche_hnet.core.fisher.kronecker_layer import (
    KroneckerFactor,
    KroneckerFisher,
    LayerLayout,
)
from avalanche_hnet.core.posterior.nearest_product import Product


def everything(parameters):
    return {n: torch.ones_like(p, dtype=torch.bool) for n, p in parameters.items()}


def trained(model, batches, *, prior_variance=0.5, displaced=0.1, gammas=(), **options):
    """A posterior after some experiences with real factors, its mean not at the model's weights.

    Of a real-valued output, so that all kinds of data fit.
    """
    posterior = KroneckerPosterior(prior_variance, **options)
    parameters = dict(model.named_parameters())
    posterior.align(parameters)
    for number, x in enumerate(batches):
        fisher = posterior.fisher(model, [x], likelihood=Gaussian(), kind="exact")
        moved = {
            n: (p + displaced * torch.randn(p.shape)).detach().to(p) for n, p in parameters.items()
        }
        gamma = gammas[number] if gammas else 1.0
        posterior.update(moved, fisher, 7, everything(parameters), gamma)
    return posterior


def random_psd(n_groups, size, generator, rank=None):
    rows = torch.randn(n_groups, rank or size, size, generator=generator)
    return rows.mT @ rows / size


def random_factor(layout, weight, seed, rank=None):
    """A factor for a layer with this weight."""
    generator = torch.Generator().manual_seed(seed)
    n_groups, n_outputs, n_inputs = layout.sizes(weight)
    inputs = random_psd(n_groups, n_inputs, generator, rank)
    if layout.is_table:
        inputs = inputs.diagonal(dim1=1, dim2=2).clone()
    return KroneckerFactor(layout, inputs, random_psd(n_groups, n_outputs, generator, rank))


def random_fisher(layers, parameters, seed, rank=None):
    """Random factors for the layers of these layouts, and a random diagonal for all else."""
    factors = {
        name: random_factor(layout, parameters[layout.weight], seed + i, rank)
        for i, (name, layout) in enumerate(layers.items())
    }
    covered = {name for layout in layers.values() for name in layout.names}
    generator = torch.Generator().manual_seed(seed)
    diagonal = {
        n: torch.rand(p.shape, generator=generator)
        for n, p in parameters.items()
        if n not in covered
    }
    return KroneckerFisher(factors, diagonal)


def matrix_of(product):
    """Σ over (o, i), (p, j) of G_op A_ij: (K·O·I, K·O·I), the groups as blocks."""
    inputs, outputs = product
    if inputs.dim() == 2:
        inputs = torch.diag_embed(inputs)
    return torch.block_diag(*(torch.kron(g, a) for a, g in zip(inputs, outputs, strict=True)))


def flat(layout, tensors):
    """The parameters of a layer in the order of :func:`matrix_of`."""
    return layout.matrices(tensors).flatten()


def linearised(model, posterior, x, *label):
    """f(x, φ*) and the variances of the linearised outputs, by explicit matrices."""
    mean = dict(posterior.mean)
    model = model.eval()
    # One sample after the other, since some gradients depend on the batch.
    samples = [
        (
            functional_call(model, mean, (xi, *label)).detach(),
            jacrev(lambda p, xi=xi: functional_call(model, p, (xi, *label)), chunk_size=1)(mean),
        )
        for xi in x.split(1)
    ]
    rows = torch.cat([outputs for outputs, _ in samples])
    jacobian = {
        n: torch.cat([j[n].detach().flatten(0, rows.dim() - 1) for _, j in samples]) for n in mean
    }
    total, parts = torch.zeros(rows.numel()), posterior._parts
    for layer in parts.layers.values():
        own = {n: jacobian.pop(n) for n in layer.layout.names}
        j = torch.stack(
            [flat(layer.layout, {n: t[i] for n, t in own.items()}) for i in range(len(total))]
        )
        precision = sum(matrix_of(product) for product in layer.products)
        precision = precision + flat(layer.layout, parts.elements.precision).diag()
        total += (j @ precision.inverse() * j).sum(1)
    for name, j in jacobian.items():
        total += (j**2 / parts.elements.precision[name]).flatten(1).sum(1)
    return rows, total.view_as(rows)


def linear(name="layer", bias=True):
    return LayerLayout(f"{name}.weight", f"{name}.bias" if bias else None, 1, False, (4,))


LAYOUTS = {
    "linear": ((3, 4), linear()),
    "no bias": ((3, 4), linear(bias=False)),
    "convolution": ((3, 2, 2), LayerLayout("layer.weight", "layer.bias", 1, False, (2, 2))),
    "groups": ((4, 2, 2), LayerLayout("layer.weight", "layer.bias", 2, False, (2, 2))),
    "table": ((5, 3), LayerLayout("layer.weight", None, 1, True, (3,))),
}


def parameters_of(kind, seed=0):
    """Parameters of a layer of one of ``LAYOUTS``, and one of no layer."""
    generator = torch.Generator().manual_seed(seed)
    shape, layout = LAYOUTS[kind]
    shapes = {"layer.weight": shape, "norm": (3,)}
    if layout.bias is not None:
        shapes["layer.bias"] = shape[:1]
    return {n: nn.Parameter(torch.randn(s, generator=generator)) for n, s in shapes.items()}


def block_masks(parameters, layout, seed):
    """Some units, by some inputs of a table; some elements of what is no layer."""
    generator = torch.Generator().manual_seed(seed)
    weight = parameters[layout.weight]
    rows = torch.rand(len(weight), generator=generator) < 0.6
    masks = {
        n: (rows.view(-1, *[1] * (p.dim() - 1)) & torch.ones_like(p, dtype=torch.bool)).detach()
        for n, p in parameters.items()
        if n in layout.names
    }
    masks["norm"] = torch.rand(3, generator=generator) < 0.6
    return masks


def assert_same_state(found, expected):
    """Of nested dictionaries and lists with tensors."""
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_same_state(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_same_state(*pair)
    else:
        assert found == expected


def product_of(fisher):
    factor = fisher.layers["layer"]
    return Product(factor.inputs, factor.outputs)


def grown(parameters, layout, n_more):
    """The same with more rows."""
    return {
        n: nn.Parameter(torch.cat([p.detach(), torch.randn(n_more, *p.shape[1:])]))
        if n in layout.names
        else p
        for n, p in parameters.items()
    }
