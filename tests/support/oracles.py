"""Slow and plain versions of what the package computes, to compare with."""

import torch


def loop_fisher(model, x, targets, nll, labels=None):
    """Mean over samples of squared gradients, each sample on its own."""
    model.eval()
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for n in range(len(x)):
        output = call(model, x, labels, n)
        add_squares(total, parameters, nll(output, targets[n : n + 1]), 1.0)
    return {name: t / len(x) for name, t in total.items()}


def loop_exact_categorical_fisher(model, x, labels=None):
    """The same with the expectation over the model's labels, weighted by their probabilities."""
    model.eval()
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for n in range(len(x)):
        log_p = call(model, x, labels, n).log_softmax(1)[0]
        for log_pc in log_p:
            add_squares(total, parameters, -log_pc, log_pc.exp().item())
    return {name: t / len(x) for name, t in total.items()}


def call(model, x, labels, n):
    return model(x[n : n + 1]) if labels is None else model(x[n : n + 1], labels[n : n + 1])


def add_squares(total, parameters, loss, weight):
    gradients = torch.autograd.grad(
        loss, list(parameters.values()), retain_graph=True, allow_unused=True
    )
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            total[name] += weight * gradient.to_dense() ** 2


def assert_close(found, expected, rtol=1e-9, floor=0.0):
    """Each tensor to ``rtol`` of its largest element, or to ``floor``."""
    assert found.keys() == expected.keys()
    for name in expected:
        scale = expected[name].abs().max() if expected[name].numel() else 0
        torch.testing.assert_close(
            found[name], expected[name], rtol=rtol, atol=float(rtol * scale) + floor, msg=name
        )
