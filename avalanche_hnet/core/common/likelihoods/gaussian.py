"""Real targets with Gaussian noise: the likelihood of the mean squared error."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from avalanche_hnet.core.common.arguments import generator_or_none, number
from avalanche_hnet.core.common.likelihoods.base import Likelihood, check_same_shape, per_sample
from avalanche_hnet.core.common.likelihoods.criterion_class import as_module


class Gaussian(Likelihood):
    """Real targets with mean f(x) and independent noise of standard deviation ``noise_std``.

    ``outputs`` and ``targets`` have one shape, (B, …); the NLL is ‖y − f(x)‖² / (2 noise_std²).

    Raises:
        TypeError, ValueError: if ``noise_std`` is not a positive number.
    """

    def __init__(self, noise_std: float = 1.0) -> None:
        number("a positive number", noise_std=noise_std)
        if not noise_std > 0:
            raise ValueError(f"noise_std must be positive, got {noise_std}")
        self.noise_std = float(noise_std)

    def __repr__(self) -> str:
        return f"Gaussian(noise_std={self.noise_std})"

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.check(outputs, targets)
        return per_sample((targets - outputs).square()) / (2 * self.noise_std**2)

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        generator_or_none(generator=generator)
        device = outputs.device if generator is None else generator.device
        noise = torch.randn(outputs.shape, generator=generator, device=device, dtype=outputs.dtype)
        return outputs + self.noise_std * noise.to(outputs.device)

    def fisher_factors(self, outputs: Tensor) -> Iterator[Tensor]:
        for unit in range(outputs[0].numel()):
            factor = torch.zeros_like(outputs)
            factor.view(len(outputs), -1)[:, unit] = 1 / self.noise_std
            yield factor

    def criterion_scale(self, criterion: object, outputs: Tensor, targets: Tensor) -> float:
        criterion = as_module(criterion)
        if not isinstance(criterion, nn.MSELoss):
            return 1.0
        n_terms = 1 / len(outputs) if criterion.reduction == "sum" else outputs[0].numel()
        return 2 * self.noise_std**2 / n_terms

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        is_label = not targets.is_floating_point() and targets.dim() < outputs.dim()
        hint = "" if not is_label else " (for class labels use criterion=CrossEntropyLoss())"
        check_same_shape(outputs, targets, hint)
