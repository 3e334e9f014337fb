"""Posteriors, and the moments of a linearised network from its Jacobian."""

import copy

import torch
from torch.func import functional_call, jacrev

from avalanche_hnet import Gaussian, GaussianPosterior
from avalanche_hnet.core.posterior.predictor import Predictor

CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def posterior_of(model, prior_variance=0.5, displaced=0.1, seed=5):
    """A random posterior whose mean is not at the model's weights."""
    generator = torch.Generator().manual_seed(seed)
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    moved, fisher, active = {}, {}, {}
    for name, p in parameters.items():
        moved[name] = p + displaced * torch.randn(p.shape, generator=generator).to(p)
        fisher[name] = 3 * torch.rand(p.shape, generator=generator).to(p)
        active[name] = torch.ones(p.shape, dtype=torch.bool)
    posterior = GaussianPosterior(prior_variance)
    posterior.align(dict(model.named_parameters()))
    posterior.update(moved, fisher, 4, active)
    return posterior


def moments(model, posterior, x, *label):
    """f(x, φ*), J Λ⁻¹ Jᵀ (B·U, B·U) and J, by an explicit Jacobian."""
    model = copy.deepcopy(model).eval()

    def outputs(parameters):
        return functional_call(model, parameters, (x, *label))

    jacobian = jacrev(outputs, chunk_size=1)(dict(posterior.mean))
    rows = outputs(dict(posterior.mean)).detach()
    flat = torch.cat([jacobian[n].detach().reshape(rows.numel(), -1) for n in jacobian], 1)
    variances = torch.cat([1 / posterior.precision[n].flatten() for n in jacobian])
    return rows, flat * variances @ flat.T, flat


def outputs_of(model, posterior, x, *options, **more):
    """Mean and variances of the outputs, whatever likelihood the posterior was learned with."""
    return Predictor(model, posterior, *options, **more).regression(x, Gaussian())
