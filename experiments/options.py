"""What the experiments have in common on their command lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch

from experiments.hypernet import HypernetOptions

Scenario = Literal["task", "domain", "class"]
Method = Literal["naive", "ewc", "prior-ewc", "hypernet", "joint"]
OptionsT = TypeVar("OptionsT", bound="Options")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of a comparison of methods on one stream of experiences."""

    scenario: Scenario = "task"
    """What is told and asked: task (the task label is given, one head per task), domain (no task
    label, the same labels in every experience) or class (no task label, classes add up)."""
    methods: tuple[Method, ...] | None = None
    """Methods to compare: no protection, Avalanche's online EWC, PriorEWCPlugin, a hypernetwork
    (in the task scenario), and training on all experiences at once. Default: all."""
    seeds: int = 3
    """Number of repetitions, with the seeds 0, 1, ... for weights, data order and permutations."""
    hidden: tuple[int, ...] = (100, 100)
    """Widths of the hidden layers of the MLP."""
    dropout: float = 0.0
    """Probability with which hidden units of the MLP are dropped in training."""
    iterations: int = 2000
    """Training iterations per experience."""
    batch_size: int = 32
    """Samples per iteration."""
    learning_rate: float = 1e-3
    """Of Adam, at the start of each experience; it falls to zero along a half cosine."""
    ewc_lambda: float | None = None
    """Strength of Avalanche's EWC. Default: the best for the scenario on held-out data, with the
    default number of iterations."""
    prior_ewc_lambda: float | None = None
    """Strength of PriorEWC. Default: likewise."""
    prior_variance: float = 1.0
    """Variance of the prior of PriorEWC."""
    n_fisher: int | None = None
    """Samples for the Fisher of PriorEWC. Default: all."""
    hypernet: HypernetOptions = field(default_factory=HypernetOptions)
    """Settings of the hypernetwork."""
    validate: bool = False
    """Hold a tenth of the training data out and report on that instead of the test data."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to train."""
    output: Path = Path("runs")
    """Folder in which the run makes a folder of its own."""

    def __post_init__(self) -> None:
        """Refuse what no run could use."""
        for name in ("seeds", "iterations", "batch_size", "n_fisher"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "prior_variance"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("ewc_lambda", "prior_ewc_lambda"):
            if getattr(self, name) is not None and not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be a probability below 1, got {self.dropout}")
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden must be widths of at least 1, got {self.hidden}")
        methods = self.chosen_methods
        if not methods or len(set(methods)) < len(methods):
            raise ValueError(f"methods must name at least one, each once, got {methods}")
        if "hypernet" in methods and self.scenario != "task":
            raise ValueError(
                "methods may name 'hypernet' with scenario 'task' only, which tells the "
                f"hypernetwork the task, got scenario {self.scenario!r}"
            )
        try:
            torch.zeros(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device {self.device!r} cannot be used: {error}") from None

    @property
    def chosen_methods(self) -> tuple[Method, ...]:
        """The methods, those of the scenario if none were given."""
        if self.methods is not None:
            return self.methods
        return tuple(m for m in get_args(Method) if self.scenario == "task" or m != "hypernet")


def split_arguments(scenario: Scenario) -> dict[str, Any]:
    """What makes a split of classes into experiences one of ``scenario``."""
    return {
        "return_task_id": scenario == "task",
        "class_ids_from_zero_in_each_exp": scenario != "class",
    }


def with_strengths(
    options: OptionsT, ewc: Mapping[Scenario, float], prior_ewc: Mapping[Scenario, float]
) -> OptionsT:
    """The options with the strengths that were not given filled in for their scenario."""
    if options.ewc_lambda is None:
        options = replace(options, ewc_lambda=ewc[options.scenario])
    if options.prior_ewc_lambda is None:
        options = replace(options, prior_ewc_lambda=prior_ewc[options.scenario])
    return options
