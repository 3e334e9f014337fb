"""What a user writes, for ``mypy --strict``: it sees the package's types, and finds mistakes.

Each mistake is one that mypy must find: an ignored error that is none is an error itself.
"""

import torch
from torch import Tensor, nn

from avalanche_hnet import (
    GaussianPosterior,
    Hypernet,
    InMemoryPlugin,
    IsolatedEvaluationPlugin,
    PriorEWC,
    PriorEWCPlugin,
    diagonal_fisher,
)
from avalanche_hnet.benchmarks import SplitDigits


def fisher_of(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Right."""
    return diagonal_fisher(model, [(x, y)], kind="exact")


model = nn.Linear(64, 10)
optimizer = torch.optim.Adam(model.parameters())
plugin = PriorEWCPlugin(ewc_lambda=10, structure="kronecker", rank=None)
strategy = PriorEWC(
    model=model,
    optimizer=optimizer,
    plugins=[IsolatedEvaluationPlugin(), InMemoryPlugin()],
)
mean: dict[str, Tensor] = GaussianPosterior(prior_variance=0.1).mean
benchmark = SplitDigits(5)

PriorEWCPlugin(fisher="exactly")  # type: ignore[arg-type]
PriorEWC(model=model)  # type: ignore[call-arg]
Hypernet(model=3)  # type: ignore[arg-type]
wrong: int = fisher_of(model, torch.ones(1, 64), torch.zeros(1))  # type: ignore[assignment]
