"""Strategies that stand in the middle of an experience, to time their iterations alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from avalanche.benchmarks import CLScenario, tensors_benchmark
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def random_stream(
    sizes: Sequence[int], shape: tuple[int, ...], n_classes: int, *, labels: bool
) -> CLScenario:
    """Experiences of so many random samples each, with task labels 0, 1, … or all 0."""
    data = [(torch.randn(n, *shape), torch.randint(n_classes, (n,))) for n in sizes]
    tasks = list(range(len(sizes))) if labels else [0] * len(sizes)
    return tensors_benchmark(train_tensors=data, test_tensors=data[:1], task_labels=tasks)


def naive(
    model: nn.Module,
    *plugins: SupervisedPlugin,
    batch_size: int,
    evaluator: EvaluationPlugin | None = None,
) -> Naive:
    """Avalanche's plain strategy with Adam; without an evaluator it measures and logs nothing."""
    return Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), 1e-3),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=batch_size,
        eval_mb_size=batch_size,
        device=DEVICE,
        plugins=[*plugins],
        evaluator=evaluator or EvaluationPlugin(loggers=[]),
    )


def in_the_last_experience(strategy: SupervisedTemplate, benchmark: CLScenario) -> None:
    """Train on all experiences but the last, and begin that one."""
    *earlier, last = benchmark.train_stream
    for experience in earlier:
        strategy.train(experience)
    strategy.is_training = True
    strategy.model.train()
    strategy.experience = last
    strategy._before_training_exp()
    strategy._before_training_epoch()


class Loop:
    """Plain training: what a strategy does, without the strategy.

    Args:
        model: trained with Adam and the cross-entropy.
        x: all inputs.
        y: all labels.
        batch_size: samples per iteration.
    """

    def __init__(self, model: torch.nn.Module, x: Tensor, y: Tensor, batch_size: int) -> None:
        self.model = model.to(DEVICE)
        self.x, self.y, self.batch_size = x.to(DEVICE), y.to(DEVICE), batch_size
        self.optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        self.n_iterations = -(-len(x) // batch_size)

    def __call__(self) -> None:
        """One epoch."""
        for rows in torch.randperm(len(self.x), device=DEVICE).split(self.batch_size):
            self.optimizer.zero_grad()
            outputs = self.model(self.x[rows])
            torch.nn.functional.cross_entropy(outputs, self.y[rows]).backward()
            self.optimizer.step()
