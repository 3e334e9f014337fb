"""What the experiments have in common on their command lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch

from avalanche_hnet.core.posterior.predict import PredictionMethod
from avalanche_hnet.core.posterior.task_criteria import InferenceCriterion
from experiments.hypernet import HypernetOptions

Scenario = Literal["task", "domain", "class"]
Head = Literal["growing", "fixed", "separate"]
Method = Literal["naive", "ewc", "prior-ewc", "hypernet", "joint"]
OptionsT = TypeVar("OptionsT", bound="Options")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of a comparison of methods on one stream of experiences."""

    scenario: Scenario | Literal["all"] = "task"
    """What is told and asked: task (the task label is given, one head per task), domain (no task
    label, the same labels in every experience), class (no task label, classes add up), or all
    three in turn. The hypernetwork, which is told the task in training, infers it otherwise."""
    head: Head | None = None
    """Of the class scenario, for all but the hypernetwork: a softmax that grows with the classes
    (the default), a fixed one over all classes, or a head per task, with the task inferred."""
    criterion: InferenceCriterion = "entropy"
    """What an inferred task is chosen by. Agreement is of draws from PriorEWC's posterior."""
    prediction: PredictionMethod = "linearized"
    """How PriorEWC with separate heads predicts, to infer the task."""
    methods: tuple[Method, ...] = get_args(Method)
    """Methods to compare: no protection, Avalanche's online EWC, PriorEWCPlugin, a hypernetwork,
    and training on all experiences at once."""
    seeds: int = 3
    """Number of repetitions, with the seeds 0, 1, ... for weights, data order and permutations."""
    hidden: tuple[int, ...] = (100, 100)
    """Widths of the hidden layers of the MLP."""
    dropout: float = 0.0
    """Probability with which hidden units of the MLP are dropped in training."""
    input_noise: float = 0.0
    """Standard deviation of the noise that is added to the inputs of the MLP in training. It makes
    networks less sure of what they were not trained on, which inferring tasks depends on."""
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
    in_memory: bool = True
    """Read the data once and serve them from memory, rather than through Avalanche's loaders."""
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
        if not 0 <= self.input_noise < float("inf"):
            raise ValueError(f"input_noise must be at least 0, got {self.input_noise}")
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden must be widths of at least 1, got {self.hidden}")
        methods = self.methods
        if not methods or len(set(methods)) < len(methods):
            raise ValueError(f"methods must name at least one, each once, got {methods}")
        if self.head is not None and self.scenario not in ("class", "all"):
            raise ValueError(
                f"head={self.head!r} needs scenario 'class', got scenario {self.scenario!r}"
            )
        inferring = [m for m in methods if self.infers_tasks(m)]
        if self.criterion != "entropy" and not inferring:
            raise ValueError(
                f"criterion={self.criterion!r} is for tasks that are inferred, which no method "
                f"does in scenario {self.scenario!r}"
                + ("" if self.head is None else f" with head {self.head!r}")
            )
        if self.prediction != "linearized" and "prior-ewc" not in inferring:
            raise ValueError(
                f"prediction={self.prediction!r} needs the method 'prior-ewc' in scenario 'class' "
                "with head 'separate'"
            )
        if self.criterion == "agreement" and self.prediction == "map":
            raise ValueError(
                "criterion='agreement' does not go with prediction='map', which draws nothing"
            )
        if self.criterion == "agreement" and any(m != "prior-ewc" for m in methods):
            raise ValueError(
                "criterion='agreement' needs draws from a posterior, which only the method "
                f"'prior-ewc' has, got methods {methods}"
            )
        try:
            torch.zeros(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device {self.device!r} cannot be used: {error}") from None

    def by_scenario(self: OptionsT) -> list[OptionsT]:
        """The options of each scenario, with what it does not use left out."""
        if self.scenario != "all":
            return [self]
        unused: dict[str, Any] = {"head": None, "prediction": "linearized"}
        criterion = self.criterion if "hypernet" in self.methods else "entropy"
        return [
            replace(self, scenario="task", criterion="entropy", **unused),
            replace(self, scenario="domain", criterion=criterion, **unused),
            replace(self, scenario="class"),
        ]

    @property
    def heads(self) -> Literal["task", "domain"] | Head:
        """The kind of output layer: one head per task, one for all, or a kind of the classes'."""
        if self.scenario == "class":
            return self.head or "growing"
        assert self.scenario != "all"
        return self.scenario

    def infers_tasks(self, method: Method) -> bool:
        """Whether the method has a solution for each task, but is not told the task."""
        return self.scenario != "task" and (method == "hypernet" or self.head == "separate")


def split_arguments(scenario: str) -> dict[str, Any]:
    """What makes a split of classes into experiences one of ``scenario``.

    Task labels are there for training; what must not know them in evaluation does not look.
    """
    return {"return_task_id": True, "class_ids_from_zero_in_each_exp": scenario != "class"}


def with_strengths(
    options: OptionsT, ewc: Mapping[str, float], prior_ewc: Mapping[str, float]
) -> OptionsT:
    """The options with the strengths that were not given filled in for their scenario.

    With separate heads, the class scenario's training is that of the task scenario.
    """
    trained_as = "task" if options.head == "separate" else options.scenario
    if options.ewc_lambda is None:
        options = replace(options, ewc_lambda=ewc[trained_as])
    if options.prior_ewc_lambda is None:
        options = replace(options, prior_ewc_lambda=prior_ewc[trained_as])
    return options
