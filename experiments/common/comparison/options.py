"""The settings that all comparisons on a stream have."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import torch

from avalanche_hnet.core.posterior.predict import PredictionMethod
from avalanche_hnet.core.posterior.structure import Structure
from avalanche_hnet.core.posterior.task_criteria import InferenceCriterion
from experiments.common.hypernet import HypernetOptions
from experiments.common.methods import METHODS, MethodName, with_structure
from experiments.common.settings import (
    EACH_ONCE,
    Count,
    Head,
    InMemory,
    Must,
    OptionalCount,
    OptionalNotNegative,
    Output,
    Positive,
    RunFolder,
    Scenario,
    Settings,
    Widths,
)

OptionsT = TypeVar("OptionsT", bound="Options")


@dataclass(frozen=True, kw_only=True)
class Options(Settings):
    """Settings of a comparison of methods on one stream of experiences."""

    experiment: ClassVar[str] = ""
    """The name of the comparison, for its folder, titles and strengths."""

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
    methods: Annotated[tuple[MethodName, ...], EACH_ONCE] = tuple(METHODS)
    """Methods to compare: no protection, Avalanche's online EWC, PriorEWCPlugin, a hypernetwork,
    and training on all experiences at once."""
    seeds: Count = 3
    """Number of repetitions, with the seeds 0, 1, ... for weights, data order and permutations."""
    hidden: Widths = (100, 100)
    """Widths of the hidden layers of the MLP."""
    dropout: Annotated[float, Must("be a probability below 1", lambda value: 0 <= value < 1)] = 0.0
    """Probability with which hidden units of the MLP are dropped in training."""
    input_noise: Annotated[float, Must("be at least 0", lambda v: 0 <= v < float("inf"))] = 0.0
    """Standard deviation of the noise that is added to the inputs of the MLP in training. It makes
    networks less sure of what they were not trained on, which inferring tasks depends on."""
    iterations: Count = 2000
    """Training iterations per experience."""
    batch_size: Count = 32
    """Samples per iteration."""
    learning_rate: Positive = 1e-3
    """Of Adam, at the start of each experience; it falls to zero along a half cosine."""
    ewc_lambda: OptionalNotNegative = None
    """Strength of Avalanche's EWC. Default: the best for the scenario on held-out data, with the
    default number of iterations."""
    prior_ewc_lambda: OptionalNotNegative = None
    """Strength of PriorEWC with a diagonal posterior. Default: likewise."""
    prior_variance: Positive = 1.0
    """Variance of its prior."""
    prior_ewc_kron_lambda: OptionalNotNegative = None
    """Strength of PriorEWC with a Kronecker-factored posterior. Default: likewise."""
    prior_ewc_kron_variance: Positive = 1.0
    """Variance of its prior."""
    structure: Structure | None = None
    """Of the posterior of PriorEWC among the methods, instead of both: diagonal (prior-ewc) or
    kronecker (prior-ewc-kron)."""
    n_fisher: OptionalCount = None
    """Samples for the Fisher of PriorEWC. Default: all."""
    hypernet: HypernetOptions = field(default_factory=HypernetOptions)
    """Settings of the hypernetwork."""
    validate: bool = False
    """Hold a tenth of the training data out and report on that instead of the test data."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to train."""
    in_memory: InMemory = True
    output: Output = Path("runs")
    run_folder: RunFolder = None

    def __post_init__(self) -> None:
        """Refuse what no run could use."""
        super().__post_init__()
        object.__setattr__(self, "methods", with_structure(self.methods, self.structure))
        self._refuse_unused()
        try:
            torch.zeros(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device {self.device!r} cannot be used: {error}") from None

    def by_scenario(self: OptionsT) -> list[OptionsT]:
        """The options of each scenario, with what it does not use left out."""
        if self.scenario != "all":
            return [self]
        unused: dict[str, Any] = {"head": None, "prediction": "linearized"}
        generated = any(METHODS[m].through_hypernetwork for m in self.methods)
        criterion = self.criterion if generated else "entropy"
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

    def infers_tasks(self, method: MethodName) -> bool:
        """Whether the method has a solution for each task, but is not told the task."""
        return self.scenario != "task" and (
            METHODS[method].through_hypernetwork or self.head == "separate"
        )

    def strength(self, method: MethodName) -> float | None:
        """Of what protects earlier experiences: the one given, or the method's for the scenario.

        With separate heads, the class scenario's training is that of the task scenario.
        """
        given: float | None = getattr(self, _strength_option(method), None)
        if given is not None:
            return given
        trained_as = "task" if self.head == "separate" else self.scenario
        return METHODS[method].strength(self.experiment, trained_as)

    def variance(self, method: MethodName) -> float:
        """Of the prior of a method that has one."""
        given: float = getattr(self, f"{_option(method)}_variance", self.prior_variance)
        return given

    def _refuse_unused(self) -> None:
        if self.head is not None and self.scenario not in ("class", "all"):
            raise ValueError(
                f"head={self.head!r} needs scenario 'class', got scenario {self.scenario!r}"
            )
        inferring = [m for m in self.methods if self.infers_tasks(m)]
        if self.criterion != "entropy" and not inferring:
            raise ValueError(
                f"criterion={self.criterion!r} is for tasks that are inferred, which no method "
                f"does in scenario {self.scenario!r}"
                + ("" if self.head is None else f" with head {self.head!r}")
            )
        with_posterior = [m for m in inferring if METHODS[m].has_posterior]
        if self.prediction != "linearized" and not with_posterior:
            raise ValueError(
                f"prediction={self.prediction!r} needs the method 'prior-ewc' or 'prior-ewc-kron' "
                "in scenario 'class' with head 'separate'"
            )
        if self.criterion == "agreement" and self.prediction == "map":
            raise ValueError(
                "criterion='agreement' does not go with prediction='map', which draws nothing"
            )
        lacking = [m for m in self.methods if not METHODS[m].has_posterior]
        if self.criterion == "agreement" and lacking:
            raise ValueError(
                "criterion='agreement' needs draws from a posterior, which only the methods "
                f"'prior-ewc' and 'prior-ewc-kron' have, got methods {self.methods}"
            )


def split_arguments(scenario: str) -> dict[str, Any]:
    """What makes a split of classes into experiences one of ``scenario``.

    Task labels are there for training; what must not know them in evaluation does not look.
    """
    return {"return_task_id": True, "class_ids_from_zero_in_each_exp": scenario != "class"}


def with_strengths(options: OptionsT) -> OptionsT:
    """The options with the strengths that were not given filled in.

    Raises:
        ValueError: if one of the methods needs a strength and has none in this experiment.
    """
    for method in options.methods:
        options.strength(method)
    for method in METHODS:
        option = _strength_option(method)
        if hasattr(options, option):
            given: dict[str, Any] = {option: options.strength(method)}
            options = replace(options, **given)
    return options


def _strength_option(method: MethodName) -> str:
    return f"{_option(method)}_lambda"


def _option(method: MethodName) -> str:
    return method.replace("-", "_")
